"""German."""

from __future__ import annotations

from maestro_jax.minivox.grammar import Grammar, Noun, Slot
from maestro_jax.minivox.meanings import Values


def _noun(one: str, other: str = "", symbol: str = "") -> Noun:
    return Noun({"one": one, "other": other or one}, symbol=symbol)


class German(Grammar):
    """German: units come before tens, and long numbers are one word."""

    language = "de"
    decimal_point = "Komma"
    quarter = "Viertel"
    nouns = {
        "kilometre": _noun("Kilometer"),
        "metre": _noun("Meter"),
        "minute": _noun("Minute", "Minuten"),
        "year_of_age": _noun("Jahr", "Jahre"),
        "kilogram": _noun("Kilogramm"),
        "chair": _noun("Stuhl", "Stühle"),
        "page": _noun("Seite", "Seiten"),
        "euro": _noun("Euro"),
        "dollar": _noun("Dollar"),
        "cent": _noun("Cent"),
        "percent": _noun("Prozent", symbol=" %"),
        "degree": _noun("Grad"),
    }
    templates = {
        "label": (
            "Bitte öffnen Sie Seite {0:number}.",
            "Ihre Zimmernummer ist {0:number}.",
            "Nehmen Sie den Bus Nummer {0:number}.",
            "Die Nummer {0:number} gewinnt.",
        ),
        "digits": (
            "Der Code lautet {0,1,2,3:digits}.",
            "Meine Telefonnummer endet auf {0,1,2:digits}.",
        ),
        "sum": (
            "{0:number} plus {1:number} ist {0,1:plus}.",
            "{0:number} minus {1:number} ist {0,1:minus_result}.",
        ),
        "ordinal": (
            "Das Büro ist im {0:ordinal.dative} Stock.",
            "Das ist das {0:ordinal} Kapitel.",
            "Sie kam auf den {0:ordinal.dative} Platz.",
        ),
        "date": (
            "Die Sitzung ist am {0,1:date.dative}.",
            "Wir fahren am {0,1:date.dative} ab.",
            "Das Geschäft ist am {0,1:date.dative} geschlossen.",
        ),
        "weekday_date": (
            "Heute ist {0:weekday}, der {1,2:date}.",
            "Bis {0:weekday}, den {1,2:date.dative}.",
        ),
        "full_date": ("Er wurde am {0,1:date.dative} {2:year} geboren.",),
        "year": (
            "Das Haus wurde {0:year} gebaut.",
            "Er wohnt hier seit {0:year}.",
        ),
        "clock": (
            "Es ist {0,1:clock}.",
            "Ich stehe um {0,1:clock} auf.",
            "Wir essen um {0,1:clock}.",
        ),
        "timetable": (
            "Der Zug fährt um {0,1:timetable} ab.",
            "Der Bus kommt um {0,1:timetable}.",
            "Das Flugzeug landet um {0,1:timetable}.",
        ),
        "price": (
            "Die Karte kostet {0:euro}.",
            "Ich habe dafür {0:dollar} bezahlt.",
        ),
        "price_cents": ("Die Rechnung beträgt {0:euro} und {1:cent}.",),
        "percent": ("{0:percent} der Menschen haben gewählt.",),
        "decimal": ("Die Preise stiegen um {0,1:decimal}.",),
        "temperature": (
            "Die Temperatur beträgt {0:degree}.",
            "Das Wasser hat {0:degree}.",
        ),
        "quantity": (
            "Das Dorf ist {0:kilometre} entfernt.",
            "Der Turm ist {0:metre} hoch.",
            "Der Film dauert {0:minute}.",
            "Sie ist {0:year_of_age} alt.",
            "Das Paket wiegt {0:kilogram}.",
            "Wir haben {0:chair}.",
            "Das Buch hat {0:page}.",
        ),
    }

    def ordinal(self, values: Values, case: str) -> Slot:
        """`dritte`; dative `dritten`."""
        ending = "n" if case == "dative" else ""
        return Slot(self.words(values[0], "ordinal") + ending, f"{values[0]}.")

    def date(self, values: Values, case: str) -> Slot:
        """`dritte Mai`."""
        day = self.ordinal(values[:1], case)
        month = self.month(values[1])
        return Slot(f"{day.spoken} {month}", f"{day.written} {month}")

    def clock(self, values: Values, case: str) -> Slot:
        """`zwanzig nach fünf`; half past five is half of the sixth hour, `halb sechs`."""
        hour, minute = values
        this, following = self.words(hour), self.words(hour % 12 + 1)
        if minute == 0:
            spoken = f"{'ein' if hour == 1 else this} Uhr"
        elif minute == 30:
            spoken = f"halb {following}"
        elif minute in (25, 35):
            spoken = f"fünf {'vor' if minute == 25 else 'nach'} halb {following}"
        elif minute < 30:
            spoken = f"{self.minutes(minute)} nach {this}"
        else:
            spoken = f"{self.minutes(60 - minute)} vor {following}"
        written = self.time(hour, minute) + (" Uhr" if minute == 0 else "")
        return Slot(spoken, written)

    def timetable(self, values: Values, case: str) -> Slot:
        """`vierzehn Uhr fünf`."""
        hour, minute = values
        return Slot(f"{self.words(hour)} Uhr {self.words(minute)}", self.time(hour, minute))
