"""Reads Ogg: the pages of a file, concatenated streams, and what is missing of them.

Ogg has no length in front: a file that was cut lacks the page that is marked as the last one. The
time stamps of pages ("granule positions") are what libsndfile takes for the length; where a
recorder left gaps in them, Opus packets are put on new pages without. Formats: RFC 3533, RFC 7845.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import NamedTuple

from maestro_jax.audio.containers.layout import Finding, Layout, Piece

MAGIC = b"OggS"
# Magic, version, flags, time stamp, serial number, page number, checksum, segments.
_PAGE = struct.Struct("<4sBBqIIIB")
_CONTINUED, _FIRST, _LAST = 1, 2, 4
_CODECS = {
    b"\x01vorbis": "vorbis",
    b"OpusHead": "opus",
    b"\x7fFLAC": "flac",
    b"Speex   ": "speex",
}
_CHECKSUM_AT = 22
# Opus counts samples at 48 kHz, whatever the rate of the input.
OPUS_RATE = 48_000
# Samples per frame of an Opus packet, by the upper five bits of its first byte.
_OPUS_FRAMES = (
    *(480, 960, 1920, 2880) * 3,
    *(480, 960) * 2,
    *(120, 240, 480, 960) * 4,
)
_LONGEST_PACKET = 5760
# Opus packets per page that is written here: a second of packets of 20 ms.
_PACKETS = 50
# Replaces tags, which may hold pictures of many pages.
_TAGS = b"OpusTags" + struct.pack("<I7sI", 7, b"maestro", 0)
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    begin: int
    body: int
    end: int
    flags: int
    granule: int
    serial: int
    number: int


@dataclasses.dataclass
class _Stream:
    """The pages of one stream, and the number of its missing pages."""

    codec: str
    pages: list[_Page]
    missing: int = 0

    @property
    def is_ended(self) -> bool:
        return bool(self.pages[-1].flags & _LAST)


def examine(content: bytes) -> Layout:
    """Finds the pages of a file and the streams of audio among them.

    Args:
        content: The whole file.

    Returns:
        Its layout: as it lies there if it is one stream that is whole; of no format if there is
        no audio among its streams.
    """
    pages, is_clean = _pages(content)
    if not is_clean and pages:
        end = _end_without_cut_packet(content[pages[-1].end :])
        if end:
            content = content[: pages[-1].end] + end
            pages, _ = _pages(content)
    chains, side_by_side, strays = _streams(content, pages)
    if not chains:
        return Layout("")
    findings = []
    if side_by_side:
        detail = f"{side_by_side + 1} streams side by side, of which the first is read"
        findings.append(Finding("several tracks", detail))
    missing = sum(stream.missing for stream in chains)
    if missing or strays:
        what = f"pages that are missing: {missing}" if missing else f"pages of no stream: {strays}"
        findings.append(Finding("damaged audio", what))
    open_ends = sum(not stream.is_ended for stream in chains)
    if open_ends and not missing:
        findings.append(Finding("cut short", "it ends before the page that is marked as the last"))
    alone = len(chains) == 1 and len(pages) == len(chains[0].pages) and is_clean
    pieces = []
    for stream in chains:
        if stream.codec == "opus":
            piece = _opus_piece(content, stream, whole=alone and not missing and not open_ends)
        elif stream.codec == "vorbis":
            piece = _vorbis_piece(content, stream, alone=alone)
        elif alone:
            piece = Piece(frames=-1)
        else:
            joined = b"".join(content[page.begin : page.end] for page in stream.pages)
            piece = Piece(joined, frames=-1)
        pieces.append(piece)
    return Layout("ogg", tuple(pieces), tuple(findings))


def _pages(content: bytes) -> tuple[list[_Page], bool]:
    """Parses the pages with a correct checksum; tells whether there is anything else."""
    pages, at, end, is_clean = [], 0, len(content), True
    while 0 <= at <= end - _PAGE.size:
        magic, _, flags, granule, serial, number, checksum, segments = _PAGE.unpack_from(
            content, at
        )
        body = at + _PAGE.size + segments
        if magic == MAGIC and body <= end:
            after = body + sum(content[at + _PAGE.size : body])
            if after <= end and _checksum(content[at:after]) == checksum:
                pages.append(_Page(at, body, after, flags, granule, serial, number))
                at = after
                continue
        is_clean = False
        at = content.find(MAGIC, at + 1)
    return pages, is_clean and at == end


def _end_without_cut_packet(content: bytes) -> bytes:
    """Builds a page of the complete packets of a page that is cut off; empty if there are none."""
    at = content.find(MAGIC)
    if at < 0 or at + _PAGE.size > len(content):
        return b""
    page = content[at:]
    segments = page[_PAGE.size : _PAGE.size + page[_PAGE.size - 1]]
    body = page[_PAGE.size + len(segments) :]
    if len(body) >= sum(segments):
        return b""
    whole = taken = size = 0
    for number, segment in enumerate(segments, start=1):
        size += segment
        if size > len(body):
            break
        if segment < 255:
            whole, taken = number, size
    if not whole:
        return b""
    head = bytearray(page[: _PAGE.size])
    head[5] &= ~_LAST & 0xFF
    head[_PAGE.size - 1] = whole
    return _checked(bytes(head) + segments[:whole] + body[:taken])


def _checked(page: bytes) -> bytes:
    """Returns a page with its checksum."""
    checksum = _checksum(page).to_bytes(4, "little")
    return page[:_CHECKSUM_AT] + checksum + page[_CHECKSUM_AT + 4 :]


def _checksum(page: bytes) -> int:
    """Computes the checksum of a page, whose own field counts as zeros.

    It is zlib's with the bits of everything in reverse and nothing inverted.
    """
    blank = page[:_CHECKSUM_AT] + bytes(4) + page[_CHECKSUM_AT + 4 :]
    value = zlib.crc32(blank.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(value.to_bytes(4, "little").translate(_REVERSED), "big")


def _streams(content: bytes, pages: list[_Page]) -> tuple[list[_Stream], int, int]:
    """Returns consecutive audio streams, the number of parallel ones, and pages of no stream."""
    streams: list[_Stream] = []
    current: dict[int, _Stream | None] = {}
    side_by_side = strays = 0
    for page in pages:
        if page.flags & _FIRST:
            start = content[page.body : page.end]
            codec = next((name for magic, name in _CODECS.items() if start.startswith(magic)), "")
            current[page.serial] = None
            if not codec:
                continue
            if streams and len(streams[-1].pages) == 1:
                # The other stream has begun and has no data yet: they are interleaved.
                side_by_side += 1
                continue
            streams.append(_Stream(codec, [page]))
            current[page.serial] = streams[-1]
        elif page.serial not in current:
            strays += 1
        elif (stream := current[page.serial]) is not None:
            stream.missing += max(page.number - stream.pages[-1].number - 1, 0)
            stream.pages.append(page)
    return [stream for stream in streams if len(stream.pages) > 1], side_by_side, strays


def _vorbis_piece(content: bytes, stream: _Stream, *, alone: bool) -> Piece:
    """Keeps a stream whose time stamps fit its packets; else corrects the time stamps.

    Args:
        content: The whole file.
        stream: A stream of it.
        alone: Whether nothing else is in the file.
    """
    totals = _vorbis_totals(content, stream)
    pages = [content[page.begin : page.end] for page in stream.pages]
    if totals and not _fit(stream, totals):
        for number, total in enumerate(totals):
            head = list(_PAGE.unpack_from(pages[number]))
            if head[3] > 0:
                # The number of samples to drop after the last packet is lost.
                head[2], head[3] = head[2] & ~_LAST, total
                pages[number] = _checked(_PAGE.pack(*head) + pages[number][_PAGE.size :])
    elif alone:
        return Piece(frames=-1)
    return Piece(b"".join(pages), frames=-1)


def _fit(stream: _Stream, totals: list[int]) -> bool:
    """Tells whether time stamps count the samples, except for those dropped at both ends."""
    stamped = [
        (page.granule, total)
        for page, total in zip(stream.pages, totals, strict=True)
        if page.granule > 0
    ]
    if not stamped:
        return True
    offset = min(stamped[0][0] - stamped[0][1], 0)
    if any(granule != total + offset for granule, total in stamped[:-1]):
        return False
    granule, total = stamped[-1]
    before = stamped[-2][1] if len(stamped) > 1 else 0
    if stream.is_ended:
        return before + offset <= granule <= total + offset
    return granule == total + offset


def _vorbis_totals(content: bytes, stream: _Stream) -> list[int]:
    """Counts the samples up to the last packet that ends in each page; empty if unknown."""
    headers: list[bytes] = []
    totals: list[int] = []
    blocks, held, total, previous = None, b"", 0, 0
    number = stream.pages[0].number
    for page in stream.pages:
        if page.number > number + 1 or not page.flags & _CONTINUED:
            held = b""
        number = page.number
        is_orphan = bool(page.flags & _CONTINUED) and not held
        at, is_begin = page.body, True
        for size in content[page.begin + _PAGE.size : page.body]:
            if len(headers) < 3:
                held += content[at : at + size]
            elif is_begin and not (held or is_orphan):
                held = content[at : at + 1] or b"\1"
            is_begin = False
            at += size
            if size == 255:
                continue
            is_begin = True
            if is_orphan:
                is_orphan = False
            elif len(headers) < 3:
                headers.append(held)
            elif blocks is not None and (length := blocks.length(held[0])):
                total += (previous + length) // 4 if previous else 0
                previous = length
            held = b""
        if len(headers) == 3 and blocks is None:
            blocks = _vorbis_blocks(headers[0], headers[2])
            if blocks is None:
                return []
        totals.append(total)
    return totals


def _opus_piece(content: bytes, stream: _Stream, *, whole: bool) -> Piece:
    """Keeps a stream whose time stamps are correct; else puts its packets on new pages.

    Args:
        content: The whole file.
        stream: A stream of it.
        whole: Whether nothing else is in the file, and nothing is missing.
    """
    head = content[stream.pages[0].body : stream.pages[0].end]
    packets, trim, is_regular = _opus_packets(content, stream)
    samples = sum(length for _, length in packets) - trim
    skipped, rate = struct.unpack_from("<HI", head.ljust(16, b"\0"), 10)
    # libsndfile decodes Opus at the rate in its header, if that is a rate of Opus.
    rate = rate if rate in (8000, 12000, 16000, 24000) else OPUS_RATE
    frames = max(samples - skipped, 0) * rate // OPUS_RATE
    if whole and is_regular:
        return Piece(frames=frames)
    serial = stream.pages[0].serial
    pages = [_page(serial, 0, _FIRST, 0, [head]), _page(serial, 1, 0, 0, [_TAGS])]
    total = 0
    for begin in range(0, len(packets), _PACKETS):
        group = packets[begin : begin + _PACKETS]
        total += sum(length for _, length in group)
        is_last = begin + _PACKETS >= len(packets)
        pages += _split(
            serial, len(pages), group, total - (trim if is_last else 0), is_last=is_last
        )
    return Piece(b"".join(pages), frames=frames)


def _opus_packets(content: bytes, stream: _Stream) -> tuple[list[tuple[bytes, int]], int, bool]:
    """Packets of audio with their samples, the samples to drop at the end, and whether the time
    stamps fit the packets.
    """
    packets: list[tuple[bytes, int]] = []
    held, before, is_regular, trim, has_tags = b"", 0, True, 0, False
    previous = stream.pages[0].number
    for page in stream.pages[1:]:
        if page.number != previous + 1 or not page.flags & _CONTINUED:
            held = b""
        previous = page.number
        # The rest of a packet whose beginning is missing is dropped.
        is_orphan = bool(page.flags & _CONTINUED) and not held
        at, page_samples = page.body, 0
        for size in content[page.begin + _PAGE.size : page.body]:
            held += content[at : at + size]
            at += size
            if size == 255:
                continue
            packet, held = held, b""
            if is_orphan:
                is_orphan = False
            elif not has_tags:
                has_tags = True
            elif length := _opus_length(packet):
                packets.append((packet, length))
                page_samples += length
            else:
                is_regular = False
        if page.granule < 0 or not page_samples:
            is_regular &= not page_samples
            continue
        trim = max(before + page_samples - page.granule, 0) if page.flags & _LAST else 0
        if trim >= page_samples and trim:
            trim, is_regular = 0, False
        is_regular &= page.granule == before + page_samples - trim
        before = page.granule
    return packets, trim, is_regular and bool(packets)


def _opus_length(packet: bytes) -> int:
    """Counts the samples of a packet at 48 kHz; 0 if it is malformed."""
    if not packet:
        return 0
    frame, code = _OPUS_FRAMES[packet[0] >> 3], packet[0] & 3
    if code == 3:
        count = packet[1] & 63 if len(packet) > 1 else 0
    else:
        count = 1 if code == 0 else 2
    length = frame * count
    return length if length <= _LONGEST_PACKET else 0


def _split(
    serial: int, number: int, packets: list[tuple[bytes, int]], granule: int, *, is_last: bool
) -> list[bytes]:
    """Yields pages of packets, with at most 255 segments each."""
    segments = sum(len(packet) // 255 + 1 for packet, _ in packets)
    if segments > 255 and len(packets) > 1:
        half = len(packets) // 2
        later = packets[half:]
        first = _split(
            serial,
            number,
            packets[:half],
            granule - sum(length for _, length in later),
            is_last=False,
        )
        return first + _split(serial, number + len(first), later, granule, is_last=is_last)
    flags = _LAST if is_last else 0
    return [_page(serial, number, flags, granule, [packet for packet, _ in packets])]


def _page(serial: int, number: int, flags: int, granule: int, packets: list[bytes]) -> bytes:
    """Builds a page of complete packets."""
    lacing = b"".join(
        b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets
    )
    head = _PAGE.pack(MAGIC, 0, flags, granule, serial, number, 0, len(lacing))
    return _checked(head + lacing + b"".join(packets))


# The samples of Vorbis packets are counted without decoding them. A packet is a block of one of two
# lengths, by its mode; two overlapping blocks give a quarter of the sum of their lengths. The modes
# are at the end of the third header. Format: Vorbis I specification, sections 4.2 and 4.3.

# Position in the first header of the block lengths: powers of two; upper bits: the longer.
_BLOCKS_AT = 28
_IDENTIFICATION, _SETUP = b"\x01vorbis", b"\x05vorbis"
# Bits of a mode: one for the block, 16 each for window and transform, which are 0, and the mapping.
_MODE_BITS = 41
_COUNT_BITS = 6
_ZEROS = (1 << 32) - 1 << 1
_MOST_MODES = 64


class _VorbisBlocks(NamedTuple):
    """The numbers of samples that the packets of a Vorbis stream can have.

    Attributes:
        lengths: Samples of the block of each mode.
        mask: Mask of the bits of a packet's first byte that give its mode.
    """

    lengths: tuple[int, ...]
    mask: int

    def length(self, first: int) -> int:
        """Returns the samples of a packet's block by its first byte; 0 if it is not audio."""
        mode = first >> 1 & self.mask
        return 0 if first & 1 or mode >= len(self.lengths) else self.lengths[mode]


def _vorbis_blocks(identification: bytes, setup: bytes) -> _VorbisBlocks | None:
    """Reads the block sizes of a Vorbis stream; None if its headers are malformed.

    Args:
        identification: The first packet.
        setup: The third packet.
    """
    if not identification.startswith(_IDENTIFICATION) or not setup.startswith(_SETUP):
        return None
    if len(identification) <= _BLOCKS_AT:
        return None
    sizes = 1 << (identification[_BLOCKS_AT] & 15), 1 << (identification[_BLOCKS_AT] >> 4)
    # Bits are filled from the lowest on; the highest set bit ends the header.
    tail = int.from_bytes(setup[-(_MOST_MODES * _MODE_BITS // 8 + 4) :], "little")
    end = tail.bit_length() - 1
    mode_flags: list[int] = []
    flags: list[int] = []
    # The number of modes precedes the first: the largest number that fits is the right one.
    while len(flags) < _MOST_MODES and end >= _MODE_BITS + _COUNT_BITS:
        end -= _MODE_BITS
        mode = tail >> end & (1 << _MODE_BITS) - 1
        if mode & _ZEROS or mode >> 33 >= _MOST_MODES:
            break
        flags.insert(0, mode & 1)
        if tail >> end - _COUNT_BITS & (1 << _COUNT_BITS) - 1 == len(flags) - 1:
            mode_flags = flags.copy()
    if not mode_flags:
        return None
    return _VorbisBlocks(
        tuple(sizes[flag] for flag in mode_flags), (1 << (len(mode_flags) - 1).bit_length()) - 1
    )
