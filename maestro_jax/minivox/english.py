"""English."""

from __future__ import annotations

from maestro_jax.minivox.grammar import Grammar, Noun, Slot
from maestro_jax.minivox.meanings import Values


def _noun(one: str, other: str, symbol: str = "") -> Noun:
    return Noun({"one": one, "other": other}, symbol=symbol)


class English(Grammar):
    """English as in Britain."""

    language = "en"
    decimal_point = "point"
    quarter = "quarter"
    nouns = {
        "kilometre": _noun("kilometre", "kilometres"),
        "metre": _noun("metre", "metres"),
        "minute": _noun("minute", "minutes"),
        "year_of_age": _noun("year", "years"),
        "kilogram": _noun("kilogram", "kilograms"),
        "chair": _noun("chair", "chairs"),
        "page": _noun("page", "pages"),
        "euro": _noun("euro", "euros"),
        "dollar": _noun("dollar", "dollars"),
        "cent": _noun("cent", "cents"),
        "percent": _noun("percent", "percent", "%"),
        "degree": _noun("degree", "degrees"),
    }
    templates = {
        "label": (
            "Please open page {0:number}.",
            "Your room number is {0:number}.",
            "Take bus number {0:number}.",
            "The number {0:number} wins.",
        ),
        "digits": (
            "The code is {0,1,2,3:digits}.",
            "My telephone number ends in {0,1,2:digits}.",
        ),
        "sum": (
            "{0:number} plus {1:number} is {0,1:plus}.",
            "{0:number} minus {1:number} is {0,1:minus_result}.",
        ),
        "ordinal": (
            "The office is on the {0:ordinal} floor.",
            "This is the {0:ordinal} chapter.",
            "She finished in {0:ordinal} place.",
        ),
        "date": (
            "The meeting is on {0,1:date}.",
            "We leave on {0,1:date}.",
            "The shop is closed on {0,1:date}.",
        ),
        "weekday_date": (
            "Today is {0:weekday}, {1,2:date}.",
            "See you on {0:weekday}, {1,2:date}.",
        ),
        "full_date": ("He was born on {0,1:date} {2:year}.",),
        "year": (
            "The house was built in {0:year}.",
            "He has lived here since {0:year}.",
        ),
        "clock": (
            "It is {0,1:clock}.",
            "I get up at {0,1:clock}.",
            "We eat at {0,1:clock}.",
        ),
        "timetable": (
            "The train leaves at {0,1:timetable}.",
            "The bus comes at {0,1:timetable}.",
            "The plane lands at {0,1:timetable}.",
        ),
        "price": (
            "The ticket costs {0:euro}.",
            "I paid {0:dollar} for it.",
        ),
        "price_cents": ("The bill is {0:euro} and {1:cent}.",),
        "percent": ("{0:percent} of the people voted.",),
        "decimal": ("Prices rose by {0,1:decimal}.",),
        "temperature": (
            "The temperature is {0:degree}.",
            "The water is at {0:degree}.",
        ),
        "quantity": (
            "The village is {0:kilometre} away.",
            "The tower is {0:metre} high.",
            "The film lasts {0:minute}.",
            "She is {0:year_of_age} old.",
            "The parcel weighs {0:kilogram}.",
            "We have {0:chair}.",
            "The book has {0:page}.",
        ),
    }

    def words(self, number: int, to: str = "cardinal") -> str:  # type: ignore[override]  # Cached above.
        """A number, without the comma after thousands."""
        return super().words(number, to).replace(",", "")

    def ordinal(self, values: Values, case: str) -> Slot:
        """`third`."""
        return Slot(self.words(values[0], "ordinal"), self.words(values[0], "ordinal_num"))

    def date(self, values: Values, case: str) -> Slot:
        """`the third of May`, written `3 May`."""
        day, month = values[0], self.month(values[1])
        return Slot(f"the {self.words(day, 'ordinal')} of {month}", f"{day} {month}")

    def clock(self, values: Values, case: str) -> Slot:
        """`twenty past five`."""
        hour, minute = values
        following = self.words(hour % 12 + 1)
        if minute == 0:
            spoken = f"{self.words(hour)} o'clock"
        elif minute == 30:
            spoken = f"half past {self.words(hour)}"
        elif minute < 30:
            spoken = f"{self.minutes(minute)} past {self.words(hour)}"
        else:
            spoken = f"{self.minutes(60 - minute)} to {following}"
        return Slot(spoken, self.time(hour, minute))

    def timetable(self, values: Values, case: str) -> Slot:
        """`fourteen oh five`."""
        hour, minute = values
        spoken = f"{self.words(hour)} {'oh ' if minute < 10 else ''}{self.words(minute)}"
        return Slot(spoken, self.time(hour, minute))
