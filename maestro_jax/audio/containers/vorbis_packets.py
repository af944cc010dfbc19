"""How many samples the packets of an Ogg Vorbis stream have, without decoding them.

A packet is a block of one of two lengths, which its mode tells; two that overlap give a quarter of
the sum of their lengths. Modes stand at the end of the third header. Format: sections 4.2 and 4.3
of the Vorbis I specification.
"""

from __future__ import annotations

from typing import NamedTuple

# Of the first header: the lengths of blocks, as powers of two, the longer one above.
_BLOCKS_AT = 28
_IDENTIFICATION, _SETUP = b"\x01vorbis", b"\x05vorbis"
# Of a mode: one bit for the block, 16 each for window and transform, which are 0, and the mapping.
_MODE_BITS = 41
_COUNT_BITS = 6
_ZEROS = (1 << 32) - 1 << 1
_MOST_MODES = 64


class Blocks(NamedTuple):
    """What lengths the packets of a stream can have.

    Attributes:
        lengths: Samples of the block of each mode.
        mask: Of the bits of a packet's first byte that tell its mode.
    """

    lengths: tuple[int, ...]
    mask: int

    def length(self, first: int) -> int:
        """Samples of the block of a packet, by its first byte; 0 if that is no packet of audio."""
        mode = first >> 1 & self.mask
        return 0 if first & 1 or mode >= len(self.lengths) else self.lengths[mode]


def find_blocks(identification: bytes, setup: bytes) -> Blocks | None:
    """Reads the modes of a stream; None if its headers are not as they should be.

    Args:
        identification: The first packet.
        setup: The third packet.
    """
    if not identification.startswith(_IDENTIFICATION) or not setup.startswith(_SETUP):
        return None
    if len(identification) <= _BLOCKS_AT:
        return None
    sizes = 1 << (identification[_BLOCKS_AT] & 15), 1 << (identification[_BLOCKS_AT] >> 4)
    # Bits are filled from the lowest on, and a set one closes the header.
    tail = int.from_bytes(setup[-(_MOST_MODES * _MODE_BITS // 8 + 4) :], "little")
    end = tail.bit_length() - 1
    found: list[int] = []
    flags: list[int] = []
    # The number of modes stands before the first: of those that fit, the largest is right.
    while len(flags) < _MOST_MODES and end >= _MODE_BITS + _COUNT_BITS:
        end -= _MODE_BITS
        mode = tail >> end & (1 << _MODE_BITS) - 1
        if mode & _ZEROS or mode >> 33 >= _MOST_MODES:
            break
        flags.insert(0, mode & 1)
        if tail >> end - _COUNT_BITS & (1 << _COUNT_BITS) - 1 == len(flags) - 1:
            found = flags.copy()
    if not found:
        return None
    return Blocks(tuple(sizes[flag] for flag in found), (1 << (len(found) - 1).bit_length()) - 1)
