"""What augmentation may do to the audio of a stream."""

from __future__ import annotations

import dataclasses

from maestro_jax.errors import UserError

NOISES = ("white", "pink", "babble")
"""The kinds of background noise that `maestro_jax.audio.acoustics` makes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioAugmentation:
    """What is done to the audio of a stream, in this order; by default nothing.

    Targets stay those of the example itself. A transcript does by nature; for the codes of
    untranscribed speech the loader hands on the clean audio beside what is heard, as the feature
    `clean_audio`, and the self-supervised objectives make their targets of it, as WavLM does.

    The published recipes are `speeds=(0.9, 1.0, 1.1)` (Ko et al., "Audio augmentation for speech
    recognition", Interspeech 2015) and `mix_probability=0.2, noise_probability=0.1, noise_snr=(-5,
    20)` (Chen et al., "WavLM", arXiv 2110.13900, with recorded noise).

    Attributes:
        speeds: One is drawn for each example, all with the same chance; tempo and pitch change
            together, as by resampling. An example that would grow out of its row by it keeps its
            speed.
        room_probability: The share of examples that get a room.
        room_decay_seconds: Reverberation time, lowest and highest.
        room_direct_ratio: Energy of the direct path over that of the reflections, in dB, lowest and
            highest.
        mix_probability: The share of examples into which a piece of another example of the same
            stream is mixed.
        mix_longest: The longest that the piece may be, as a share of the example.
        mix_energy_ratio: Power of the example over that of the other one, in dB, lowest and
            highest.
        noise_probability: The share of examples that get background noise.
        noise_snr: Power of the example over that of the noise, in dB, lowest and highest.
        noise_kinds: Kinds of noise, of `NOISES`; one is drawn. Babble takes five times as long to
            make as pink noise.
    """

    speeds: tuple[float, ...] = (1.0,)
    room_probability: float = 0.0
    room_decay_seconds: tuple[float, float] = (0.15, 0.5)
    room_direct_ratio: tuple[float, float] = (0.0, 12.0)
    mix_probability: float = 0.0
    mix_longest: float = 0.5
    mix_energy_ratio: tuple[float, float] = (-5.0, 5.0)
    noise_probability: float = 0.0
    noise_snr: tuple[float, float] = (5.0, 20.0)
    noise_kinds: tuple[str, ...] = NOISES

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        for name in ("room_probability", "mix_probability", "noise_probability", "mix_longest"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"AudioAugmentation.{name} is {value}; it must lie in 0 ... 1.")
        for name in ("room_decay_seconds", "room_direct_ratio", "mix_energy_ratio", "noise_snr"):
            value = getattr(self, name)
            if len(value) != 2 or not value[0] <= value[1]:
                raise UserError(
                    f"AudioAugmentation.{name} is {value}; give the lowest and the highest."
                )
        if not self.room_decay_seconds[0] >= 0.01:
            raise UserError(
                f"AudioAugmentation.room_decay_seconds is {self.room_decay_seconds}; a room rings "
                "for 0.01 s at least."
            )
        if not self.speeds or not all(0.5 <= speed <= 2.0 for speed in self.speeds):
            raise UserError(
                f"AudioAugmentation.speeds is {self.speeds}; give factors of 0.5 ... 2."
            )
        if not self.noise_kinds or not set(self.noise_kinds) <= set(NOISES):
            raise UserError(
                f"AudioAugmentation.noise_kinds is {self.noise_kinds}; choose from "
                f"{', '.join(NOISES)}."
            )

    @property
    def disturbs(self) -> bool:
        """Whether anything may sound over the voice, so that clean audio is another one."""
        return any((self.room_probability, self.mix_probability, self.noise_probability))
