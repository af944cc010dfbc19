"""Slovene."""

from __future__ import annotations

from maestro_jax.minivox.grammar import Grammar, Noun, Slot
from maestro_jax.minivox.meanings import Values


def _noun(one: str, two: str, few: str, other: str, gender: str = "m", symbol: str = "") -> Noun:
    return Noun({"one": one, "two": two, "few": few, "other": other}, gender, symbol)


_ENDINGS = {"": "i", "genitive": "ega", "locative": "em", "neuter": "o", "feminine_locative": "i"}

_MONTHS_GENITIVE = {"marec": "marca", "september": "septembra", "oktober": "oktobra"} | {
    "november": "novembra",
    "december": "decembra",
}

_HOURS_GENITIVE = dict(
    enumerate(
        (
            *("enih", "dveh", "treh", "štirih", "petih", "šestih"),
            *("sedmih", "osmih", "devetih", "desetih", "enajstih", "dvanajstih"),
        ),
        start=1,
    )
)


class Slovene(Grammar):
    """Slovene: a dual, units before tens, and half past five is half of the sixth hour.

    Nouns stand in the accusative, after verbs of measure.
    """

    language = "sl"
    quarter = "četrt"
    nouns = {
        "kilometre": _noun("kilometer", "kilometra", "kilometre", "kilometrov"),
        "metre": _noun("meter", "metra", "metre", "metrov"),
        "minute": _noun("minuto", "minuti", "minute", "minut", "f"),
        "year_of_age": _noun("leto", "leti", "leta", "let", "n"),
        "kilogram": _noun("kilogram", "kilograma", "kilograme", "kilogramov"),
        "chair": _noun("stol", "stola", "stole", "stolov"),
        "page": _noun("stran", "strani", "strani", "strani", "f"),
        "euro": _noun("evro", "evra", "evre", "evrov"),
        "dollar": _noun("dolar", "dolarja", "dolarje", "dolarjev"),
        "cent": _noun("cent", "centa", "cente", "centov"),
        "percent": _noun("odstotek", "odstotka", "odstotke", "odstotkov", symbol=" %"),
        "degree": _noun("stopinjo", "stopinji", "stopinje", "stopinj", "f"),
    }
    templates = {
        "label": (
            "Prosim odprite stran {0:number}.",
            "Številka vaše sobe je {0:number}.",
            "Pojdite na avtobus številka {0:number}.",
            "Zmaga številka {0:number}.",
        ),
        "digits": (
            "Koda je {0,1,2,3:digits}.",
            "Moja telefonska številka se konča na {0,1,2:digits}.",
        ),
        "sum": (
            "{0:number} plus {1:number} je {0,1:plus}.",
            "{0:number} minus {1:number} je {0,1:minus_result}.",
        ),
        "ordinal": (
            "Pisarna je v {0:ordinal.locative} nadstropju.",
            "To je {0:ordinal.neuter} poglavje.",
            "Končala je na {0:ordinal.locative} mestu.",
        ),
        "date": (
            "Sestanek je {0,1:date.genitive}.",
            "Odpotujemo {0,1:date.genitive}.",
            "Trgovina je zaprta {0,1:date.genitive}.",
        ),
        "weekday_date": (
            "Danes je {0:weekday}, {1,2:date}.",
            "Se vidimo v {0:weekday.accusative}, {1,2:date.genitive}.",
        ),
        "full_date": ("Rodil se je {0,1:date.genitive} {2:year}.",),
        "year": (
            "Hiša je bila zgrajena leta {0:year}.",
            "Tukaj živi od leta {0:year}.",
        ),
        "clock": (
            "Ura je {0,1:clock}.",
            "Vstanem ob {0,1:clock.at}.",
            "Jemo ob {0,1:clock.at}.",
        ),
        "timetable": (
            "Vlak odpelje ob {0,1:timetable}.",
            "Avtobus pride ob {0,1:timetable}.",
            "Letalo pristane ob {0,1:timetable}.",
        ),
        "price": (
            "Vstopnica stane {0:euro}.",
            "Za to sem plačal {0:dollar}.",
        ),
        "price_cents": ("Račun znaša {0:euro} in {1:cent}.",),
        "percent": ("Glasovalo je {0:percent} ljudi.",),
        "decimal": ("Cene so zrasle za {0,1:decimal}.",),
        "temperature": (
            "Temperatura znaša {0:degree}.",
            "Voda ima {0:degree}.",
        ),
        "quantity": (
            "Vas je oddaljena {0:kilometre}.",
            "Stolp je visok {0:metre}.",
            "Film traja {0:minute}.",
            "Stara je {0:year_of_age}.",
            "Paket tehta {0:kilogram}.",
            "Imamo {0:chair}.",
            "Knjiga ima {0:page}.",
        ),
    }

    def agree(self, number: int, gender: str, case: str) -> str:
        """`dva kilometra`, but `dve minuti`; num2words counts in the feminine."""
        words = self.words(number)
        return words[:-1] + "a" if gender == "m" and words.endswith("dve") else words

    def ordinal(self, values: Values, case: str) -> Slot:
        """`tretji`, `tretjem`; the neuter of a soft stem is `tretje`."""
        stem = self.words(values[0], "ordinal")[:-1]
        ending = "e" if case == "neuter" and stem.endswith("j") else _ENDINGS[case]
        return Slot(stem + ending, f"{values[0]}.")

    def year(self, values: Values, case: str) -> Slot:
        """Years are read as numbers of thousands and hundreds."""
        return Slot(self.words(values[0]), str(values[0]))

    def weekday(self, values: Values, case: str) -> Slot:
        """`sreda`, accusative `sredo`."""
        name = super().weekday(values, "").spoken
        if case == "accusative" and name.endswith("a"):
            name = name[:-1] + "o"
        return Slot(name, name)

    def date(self, values: Values, case: str) -> Slot:
        """`tretji maj`, genitive `tretjega maja`."""
        day, month = self.ordinal(values[:1], case), self.month(values[1])
        if case == "genitive":
            month = _MONTHS_GENITIVE.get(month, month + "a")
        return Slot(f"{day.spoken} {month}", f"{day.written} {month}")

    def decimal(self, values: Values, case: str) -> Slot:
        """`tri cele pet odstotka`: the wholes are counted, in the dual as well."""
        whole, tenths = values
        wholes = {1: "celo", 2: "celi", 3: "cele", 4: "cele"}.get(whole, "celih")
        spoken = f"{self.words(whole)} {wholes} {self.words(tenths)} odstotka"
        return Slot(spoken, f"{self.decimals(whole + tenths / 10)} %")

    def clock(self, values: Values, case: str) -> Slot:
        """`dvajset čez pet`, `pol šestih`, `četrt do šestih`; at five is `petih`."""
        hour, minute = values
        following = _HOURS_GENITIVE[hour % 12 + 1]
        if minute == 0:
            spoken = _HOURS_GENITIVE[hour] if case == "at" else self.words(hour)
        elif minute == 30:
            spoken = f"pol {following}"
        elif minute < 30:
            past = "eno" if hour == 1 else self.words(hour)
            spoken = f"{self.minutes(minute)} čez {past}"
        else:
            spoken = f"{self.minutes(60 - minute)} do {following}"
        return Slot(spoken, self.time(hour, minute))

    def timetable(self, values: Values, case: str) -> Slot:
        """`štirinajsti uri in pet minut`."""
        hour, minute = values
        hours = self.ordinal((hour,), "feminine_locative")
        minutes = self.counted(minute, "minute", "accusative")
        return Slot(f"{hours.spoken} uri in {minutes.spoken}", self.time(hour, minute))
