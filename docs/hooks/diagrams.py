"""Draws the diagrams of the design page: Figure 1 of the paper, and the path of the data.

    python docs/hooks/diagrams.py

writes `docs/design/figure1.svg` and `docs/design/data_flow.svg`. When the site is built, the page
has the same pictures with a link from each box to the API page of its code (`generated_pages.py`).
"""

from __future__ import annotations

import ast
import html
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
DESIGN = ROOT / "docs" / "design"

SPEECH, TEXT, SHARED, LOSS, PLAIN = "#d6e4f7", "#fbe3c8", "#dcefd6", "#f6d5d9", "#eceff1"


def api_address(name: str) -> str:
    """Returns the address of `package.definition` on the API pages, whichever module defines it.

    Raises:
        LookupError: No module of the package defines it.
    """
    package, _, definition = name.partition(".")
    for path in sorted((ROOT / "maestro_jax" / package).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == definition:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                return f"../reference/api/{package}/#{module}.{definition}"
    raise LookupError(f"maestro_jax.{package} defines no {definition}: mend docs/hooks/diagrams.py")


class Diagram:
    """An SVG under construction. Coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str, *, linked: bool) -> None:
        """Begins an empty picture on a white ground, which is legible in dark mode too."""
        self._linked = linked
        self._size = f"{width} {height}"
        self._title = title
        self._parts: list[str] = []

    def box(
        self,
        x: int,
        y: int,
        lines: str,
        *,
        fill: str,
        link: str | None = None,
        width: int = 190,
        height: int = 46,
    ) -> None:
        """Draws a box around its centre, with a bold first line."""
        first, *rest = lines.split("\n")
        left, top = x - width // 2, y - height // 2
        shape = (
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="{fill}"/>'
        )
        offset = y + 5 - 8 * len(rest)
        text = f'<text x="{x}" y="{offset}" class="bold">{html.escape(first)}</text>'
        for number, line in enumerate(rest, start=1):
            text += f'<text x="{x}" y="{offset + 16 * number}">{html.escape(line)}</text>'
        body = shape + text
        if link and self._linked:
            body = f'<a href="{api_address(link)}">{body}</a>'
        self._parts.append(body)

    def arrow(self, *points: tuple[int, int], dashed: bool = False) -> None:
        """Draws an arrow along points."""
        path = " L".join(f"{x} {y}" for x, y in points)
        style = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<path d="M{path}"{style} class="arrow" marker-end="url(#head)"/>')

    def label(self, x: int, y: int, text: str, *, anchor: str = "start") -> None:
        """Writes text beside an arrow."""
        style = f'class="label" style="text-anchor:{anchor}"'
        self._parts.append(f'<text x="{x}" y="{y}" {style}>{html.escape(text)}</text>')

    def svg(self) -> str:
        """Returns the picture."""
        width, height = self._size.split()
        style = (
            # Within a page the styles hold for this picture alone.
            ".diagram text{font:13px sans-serif;text-anchor:middle;fill:#202124}"
            ".diagram .bold{font-weight:bold}.diagram .label{font-style:italic;fill:#37474f}"
            ".diagram rect{stroke:#78909c}"
            ".diagram .arrow{fill:none;stroke:#455a64;stroke-width:1.5}"
            ".diagram a:hover rect{stroke:#1a237e;stroke-width:2}"
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" class="diagram" role="img"'
                f' viewBox="0 0 {width} {height}" style="max-width:{width}px;width:100%">',
                f"<title>{html.escape(self._title)}</title>",
                f"<style>{style}</style>",
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
                ' markerHeight="7" orient="auto">'
                '<path d="M0 0 L8 4 L0 8 z" fill="#455a64"/></marker></defs>',
                f'<rect width="{width}" height="{height}" fill="#ffffff" style="stroke:none"/>',
                *self._parts,
                "</svg>",
                "",
            ]
        )


def figure_1(*, linked: bool) -> str:
    """Draws the model: speech on the left, text on the right, both into the shared encoder."""
    d = Diagram(
        1080, 800, "Figure 1 of the paper: the boxes of MAESTRO and its losses", linked=linked
    )
    # Speech, from below.
    d.label(330, 785, "speech", anchor="middle")
    d.arrow((330, 768), (330, 744))
    d.box(
        330,
        720,
        "Log-mel, SpecAugment\nLogMelFrontend",
        fill=SPEECH,
        link="modules.LogMelFrontend",
    )
    d.arrow((330, 696), (330, 664))
    d.box(
        330,
        640,
        "Subsampling\nConvSubsampling",
        fill=SPEECH,
        link="modules.ConvSubsampling",
    )
    d.arrow((330, 616), (330, 544))
    d.label(340, 586, "masked")
    d.box(
        330,
        505,
        "Speech encoder θ_s\nConformer layers\nSpeechEncoder",
        fill=SPEECH,
        height=68,
        link="modules.SpeechEncoder",
    )
    d.arrow((234, 640), (110, 640), (110, 539))
    d.label(150, 630, "unmasked")
    d.box(
        110,
        512,
        "Quantizer\nGumbelQuantizer",
        fill=SPEECH,
        link="modules.GumbelQuantizer",
        width=170,
    )
    d.arrow((110, 488), (110, 454))
    d.label(120, 474, "codes")
    d.box(
        110,
        428,
        "Contrastive, diversity\nL_w, L_d",
        fill=LOSS,
        width=170,
        link="losses.contrastive_loss",
    )
    d.arrow((300, 470), (300, 428), (197, 428), dashed=True)
    # Text, from below.
    d.label(790, 785, "text t", anchor="middle")
    d.arrow((790, 768), (790, 744))
    d.box(
        790,
        720,
        "Text embeddings θ_t\nTextEncoder",
        fill=TEXT,
        link="modules.TextEncoder",
    )
    d.arrow((790, 696), (790, 584))
    d.label(764, 650, "e_t")
    d.arrow((790, 678), (905, 678), (905, 658))
    d.box(
        905,
        634,
        "Duration model θ_D\nDurationModel",
        fill=TEXT,
        link="modules.DurationModel",
        width=150,
    )
    d.arrow((905, 610), (905, 560), (888, 560))
    d.label(912, 596, "unspoken")
    d.arrow((981, 634), (1020, 634), (1020, 584))
    d.box(1020, 558, "Durations\nL_D", fill=LOSS, link="losses.duration_loss", width=100)
    d.box(790, 560, "Resampler\nResampler", fill=TEXT, link="modules.Resampler")
    d.arrow((790, 536), (790, 504))
    d.box(790, 480, "Refiner θ_R\nRefiner", fill=TEXT, link="modules.Refiner")
    # Between them.
    d.box(
        555,
        620,
        "Alignment (paired)\nAlign_RNNT(e_s, t)",
        fill=SHARED,
        width=170,
        link="losses.transducer_alignment",
    )
    d.arrow((426, 520), (500, 520), (500, 596), dashed=True)
    d.arrow((641, 620), (665, 620), (665, 560), (693, 560))
    d.label(650, 640, "durations")
    d.box(
        555,
        428,
        "Matching L_MM\ne_s and ê_t",
        fill=LOSS,
        width=150,
        link="losses.matching_loss",
    )
    d.arrow((426, 490), (520, 490), (520, 453), dashed=True)
    d.label(436, 482, "e_s")
    d.arrow((694, 480), (590, 480), (590, 453), dashed=True)
    d.label(664, 472, "ê_t")
    # Into the shared encoder.
    d.arrow((330, 470), (330, 330), (450, 330))
    d.label(340, 400, "speech, paired, ST")
    d.arrow((790, 456), (790, 330), (662, 330))
    d.label(800, 400, "text (masked), MT")
    d.box(
        555,
        318,
        "Shared encoder\nConformer layers\nSharedEncoder",
        fill=SHARED,
        width=210,
        height=70,
        link="modules.SharedEncoder",
    )
    d.arrow((450, 305), (110, 305), (110, 250))
    d.box(
        110,
        224,
        "Masked prediction\nL_m",
        fill=LOSS,
        width=170,
        link="losses.masked_prediction_loss",
    )
    d.arrow((24, 512), (12, 512), (12, 224), (23, 224), dashed=True)
    d.label(18, 340, "codes")
    d.arrow((555, 282), (555, 220))
    d.box(
        555,
        194,
        "RNN-T decoder\nTransducerDecoder",
        fill=SHARED,
        width=210,
        link="modules.TransducerDecoder",
    )
    d.arrow((500, 170), (370, 116))
    d.arrow((555, 170), (555, 116))
    d.arrow((610, 170), (745, 116))
    joint = "losses.joint_transducer_loss"
    d.box(340, 90, "Transducer\npaired: L_RNNT(t | e_s)", fill=LOSS, width=200, link=joint)
    d.box(555, 90, "Aligned masked LM\ntext: L_A-MLM", fill=LOSS, width=190, link=joint)
    d.box(775, 90, "Translation\nMT, ST", fill=LOSS, width=190, link=joint)
    return d.svg()


def data_flow(*, linked: bool) -> str:
    """Draws the path from files to scores."""
    d = Diagram(980, 350, "From files of a corpus to scores", linked=linked)
    top, bottom = 90, 290
    xs = (100, 300, 490, 690, 880)
    d.label(xs[0], top - 50, "once per corpus", anchor="middle")
    d.box(xs[0], top, "Corpus files\naudio, tables, text", fill=PLAIN, width=160)
    d.arrow((181, top), (214, top))
    d.box(
        xs[1],
        top,
        "maestro prepare\nCorpus",
        fill=TEXT,
        width=170,
        link="data.Corpus",
    )
    d.arrow((386, top), (409, top))
    d.box(xs[2], top, "Records\n16 kHz, array_record", fill=PLAIN, width=160)
    d.arrow((571, top), (599, top))
    d.box(xs[3], top, "Tasks, mixtures\nseqio; text to tokens", fill=TEXT, width=180)
    d.arrow((781, top), (799, top))
    d.box(
        xs[4],
        top,
        "Stream loader\nStreamLoader",
        fill=TEXT,
        width=160,
        link="data.StreamLoader",
    )
    d.arrow((880, top + 24), (880, bottom - 26))
    d.label(870, 180, "{stream: {feature: array}}, a function of (seed, step)", anchor="end")
    d.box(
        xs[4],
        bottom,
        "Objective\nloss terms",
        fill=SHARED,
        width=160,
        link="objectives.Objective",
    )
    d.label(xs[4], bottom + 44, "calls the model", anchor="middle")
    d.arrow((799, bottom), (781, bottom))
    d.box(
        xs[3],
        bottom,
        "Training step\ngradient, optimizer, EMA",
        fill=SHARED,
        width=180,
        link="training.train_step",
    )
    d.arrow((599, bottom), (576, bottom))
    d.box(
        xs[2],
        bottom,
        "Model directory\ncheckpoints, metrics,\nreport.html",
        fill=PLAIN,
        width=170,
        height=66,
    )
    d.arrow((404, bottom), (391, bottom))
    d.box(
        xs[1],
        bottom,
        "Decoding\ngreedy, beam, align",
        fill=SHARED,
        width=180,
        link="decoding.decode_speech",
    )
    d.arrow((209, bottom), (181, bottom))
    d.box(
        xs[0],
        bottom,
        "Scores\nWER, CER, BLEU, chrF",
        fill=LOSS,
        width=160,
        link="scoring.Metric",
    )
    d.label(xs[1], bottom + 44, "maestro eval, transcribe, align", anchor="middle")
    d.label(xs[3], bottom + 44, "maestro train", anchor="middle")
    return d.svg()


DIAGRAMS = {"figure1": figure_1, "data_flow": data_flow}


def main() -> None:
    """Writes the pictures without their links, which only work on the site."""
    for name, draw in DIAGRAMS.items():
        (DESIGN / f"{name}.svg").write_text(draw(linked=False), encoding="utf-8")


if __name__ == "__main__":
    main()
