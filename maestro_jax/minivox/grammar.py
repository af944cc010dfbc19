"""The common part of the grammars of all languages."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import string
from typing import ClassVar, NamedTuple

from maestro_jax.errors import UserError
from maestro_jax.minivox.meanings import Meaning, Values

try:
    import num2words
    from babel import Locale
    from babel.dates import format_date, format_time
    from babel.numbers import format_decimal
except ImportError as error:
    raise UserError(
        f"making sentences needs {error.name}; pip install maestro_jax[minivox]"
    ) from None


class Slot(NamedTuple):
    """The words that fill one slot of a template.

    Attributes:
        spoken: Spelled out: `dritten Mai`.
        written: As a newspaper prints it: `3. Mai`.
    """

    spoken: str
    written: str


@dataclasses.dataclass(frozen=True)
class Noun:
    """A noun that can be counted.

    Attributes:
        forms: A form per plural category of the language (CLDR: one, two, few, many, other).
        gender: `m`, `f` or `n`, with which numbers agree in most languages.
        symbol: What is written instead of a space and the noun, such as `%`.
    """

    forms: dict[str, str]
    gender: str = "m"
    symbol: str = ""


class Grammar:
    """Words meanings in one language.

    A template is a format string whose slots name the values that they need and how these are
    worded: `{0,1:date}`, `{0:ordinal.dative}`, `{0:kilometre}`. The part before the dot is a method
    of the grammar or one of its nouns, the part after it a grammatical case.

    Attributes:
        language: ISO 639-1 code.
        templates: Templates of each kind of meaning.
        nouns: Nouns by the names that templates use.
        minus: The word before a negative number.
        decimal_point: The word between the digits of a decimal number.
        quarter: The word for 15 minutes.
    """

    language: ClassVar[str]
    templates: ClassVar[dict[str, tuple[str, ...]]]
    nouns: ClassVar[dict[str, Noun]]
    minus: ClassVar[str] = "minus"
    decimal_point: ClassVar[str]
    quarter: ClassVar[str]

    def render(self, meaning: Meaning) -> Slot:
        """Words a meaning as a sentence with capitals and punctuation."""
        spoken, written = [], []
        template = self.templates[meaning.kind][meaning.template]
        for literal, field, name, _ in string.Formatter().parse(template):
            spoken.append(literal)
            written.append(literal)
            if field is not None:
                values = tuple(meaning.values[int(place)] for place in field.split(","))
                slot = self.slot(name or "", values)
                spoken.append(slot.spoken)
                written.append(slot.written)
        return Slot("".join(spoken), "".join(written))

    def slot(self, name: str, values: Values) -> Slot:
        """Fills one slot of a template."""
        name, _, case = name.partition(".")
        if name in self.nouns:
            return self.counted(values[0], name, case)
        return getattr(self, name)(values, case)

    # Numbers.

    @functools.lru_cache(maxsize=20_000)  # noqa: B019 (one grammar per language lives for ever)
    def words(self, number: int, to: str = "cardinal") -> str:
        """Spells a number, with num2words."""
        return num2words.num2words(number, lang=self.language, to=to)

    def agree(self, number: int, gender: str, case: str) -> str:
        """Spells a number in front of a noun."""
        return self.words(number)

    def counted(self, number: int, name: str, case: str) -> Slot:
        """Words a number of things."""
        noun = self.nouns[name]
        size = abs(number)
        form = noun.forms.get(Locale.parse(self.language).plural_form(size), "")
        form = form or noun.forms["other"]
        spoken = f"{self.agree(size, noun.gender, case)} {form}"
        if number < 0:
            spoken = f"{self.minus} {spoken}"
        return Slot(spoken, self.decimals(number) + (noun.symbol or f" {form}"))

    def decimals(self, number: int | float) -> str:
        """Writes a number in digits."""
        return format_decimal(number, locale=self.language)

    def decimal(self, values: Values, case: str) -> Slot:
        """Words a percentage with one decimal: `three point five percent`."""
        whole, tenths = values
        noun = self.nouns["percent"]
        spoken = f"{self.words(whole)} {self.decimal_point} {self.words(tenths)}"
        written = self.decimals(whole + tenths / 10) + noun.symbol
        return Slot(f"{spoken} {noun.forms['other']}", written)

    def number(self, values: Values, case: str) -> Slot:
        """Words a number that names something: page 12."""
        return Slot(self.words(values[0]), str(values[0]))

    def digits(self, values: Values, case: str) -> Slot:
        """Words digits that are read one by one."""
        spoken = " ".join(self.words(value) for value in values)
        return Slot(spoken, " ".join(map(str, values)))

    def plus(self, values: Values, case: str) -> Slot:
        """Words the sum of two numbers."""
        return self.number((values[0] + values[1],), case)

    def minus_result(self, values: Values, case: str) -> Slot:
        """Words the difference of two numbers."""
        return self.number((values[0] - values[1],), case)

    def year(self, values: Values, case: str) -> Slot:
        """Words a year."""
        return Slot(self.words(values[0], "year"), str(values[0]))

    # Dates and times.

    def weekday(self, values: Values, case: str) -> Slot:
        """Words a day of the week; 0 is Monday."""
        name = format_date(datetime.date(2024, 1, 1 + values[0]), "EEEE", locale=self.language)
        return Slot(name, name)

    def month(self, month: int) -> str:
        """Returns the name of a month in the form that dates need."""
        return format_date(datetime.date(2024, month, 1), "MMMM", locale=self.language)

    def time(self, hour: int, minute: int) -> str:
        """Writes a time of day in digits."""
        return format_time(datetime.time(hour % 24, minute), "H:mm", locale=self.language)

    def minutes(self, minutes: int) -> str:
        """Words minutes before or after the hour."""
        return self.quarter if minutes == 15 else self.words(minutes)
