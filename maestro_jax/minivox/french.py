"""French."""

from __future__ import annotations

from maestro_jax.minivox.grammar import Grammar, Noun, Slot
from maestro_jax.minivox.meanings import Values


def _noun(one: str, other: str = "", gender: str = "m", symbol: str = "") -> Noun:
    return Noun({"one": one, "other": other or one + "s"}, gender, symbol)


class French(Grammar):
    """French as in France: seventy is sixty-ten, ninety is four-twenty-ten."""

    language = "fr"
    decimal_point = "virgule"
    minus = "moins"
    nouns = {
        "kilometre": _noun("kilomètre"),
        "metre": _noun("mètre"),
        "minute": _noun("minute", gender="f"),
        "year_of_age": _noun("an"),
        "kilogram": _noun("kilo"),
        "chair": _noun("chaise", gender="f"),
        "page": _noun("page", gender="f"),
        "euro": _noun("euro"),
        "dollar": _noun("dollar"),
        "cent": _noun("centime"),
        "percent": _noun("pour cent", "pour cent", symbol=" %"),
        "degree": _noun("degré"),
        "hour": _noun("heure", gender="f"),
    }
    templates = {
        "label": (
            "Ouvrez la page {0:number}.",
            "Votre numéro de chambre est le {0:number}.",
            "Prenez le bus numéro {0:number}.",
            "Le numéro {0:number} gagne.",
        ),
        "digits": (
            "Le code est {0,1,2,3:digits}.",
            "Mon numéro de téléphone finit par {0,1,2:digits}.",
        ),
        "sum": (
            "{0:number} plus {1:number} font {0,1:plus}.",
            "{0:number} moins {1:number} font {0,1:minus_result}.",
        ),
        "ordinal": (
            "Le bureau est au {0:ordinal} étage.",
            "C'est le {0:ordinal} chapitre.",
            "Elle a fini à la {0:ordinal.feminine} place.",
        ),
        "date": (
            "La réunion est le {0,1:date}.",
            "Nous partons le {0,1:date}.",
            "Le magasin est fermé le {0,1:date}.",
        ),
        "weekday_date": (
            "Aujourd'hui c'est {0:weekday} {1,2:date}.",
            "À {0:weekday} {1,2:date}.",
        ),
        "full_date": ("Il est né le {0,1:date} {2:year}.",),
        "year": (
            "La maison a été construite en {0:year}.",
            "Il habite ici depuis {0:year}.",
        ),
        "clock": (
            "Il est {0,1:clock}.",
            "Je me lève à {0,1:clock}.",
            "Nous mangeons à {0,1:clock}.",
        ),
        "timetable": (
            "Le train part à {0,1:timetable}.",
            "Le bus arrive à {0,1:timetable}.",
            "L'avion atterrit à {0,1:timetable}.",
        ),
        "price": (
            "Le billet coûte {0:euro}.",
            "J'ai payé {0:dollar} pour ça.",
        ),
        "price_cents": ("La facture est de {0:euro} et {1:cent}.",),
        "percent": ("{0:percent} des gens ont voté.",),
        "decimal": ("Les prix ont augmenté de {0,1:decimal}.",),
        "temperature": (
            "La température est de {0:degree}.",
            "L'eau est à {0:degree}.",
        ),
        "quantity": (
            "Le village est à {0:kilometre} d'ici.",
            "La tour fait {0:metre} de haut.",
            "Le film dure {0:minute}.",
            "Elle a {0:year_of_age}.",
            "Le colis pèse {0:kilogram}.",
            "Nous avons {0:chair}.",
            "Le livre a {0:page}.",
        ),
    }

    def agree(self, number: int, gender: str, case: str) -> str:
        """`vingt et une minutes`."""
        words = self.words(number)
        return words + "e" if gender == "f" and words.endswith("un") else words

    def ordinal(self, values: Values, case: str) -> Slot:
        """`troisième`; `première` before a feminine noun."""
        if values[0] == 1 and case == "feminine":
            return Slot("première", "1re")
        return Slot(self.words(values[0], "ordinal"), "1er" if values[0] == 1 else f"{values[0]}e")

    def date(self, values: Values, case: str) -> Slot:
        """`trois mai`, but `premier mai`."""
        day, month = values[0], self.month(values[1])
        if day == 1:
            return Slot(f"premier {month}", f"1er {month}")
        return Slot(f"{self.words(day)} {month}", f"{day} {month}")

    def clock(self, values: Values, case: str) -> Slot:
        """`cinq heures vingt`; past the half, minutes are taken from the next hour."""
        hour, minute = values
        this, following = self._hour(hour), self._hour(hour % 12 + 1)
        if minute <= 30:
            after = {0: "", 15: " et quart", 30: " et demie"}
            spoken = this + after.get(minute, f" {self.words(minute)}")
        elif minute == 45:
            spoken = f"{following} moins le quart"
        else:
            spoken = f"{following} moins {self.words(60 - minute)}"
        return Slot(spoken, self._written(hour, minute))

    def timetable(self, values: Values, case: str) -> Slot:
        """`quatorze heures vingt et une`: the minutes are feminine."""
        hour, minute = values
        spoken = f"{self._hour(hour)} {self.agree(minute, 'f', '')}"
        return Slot(spoken, self._written(hour, minute))

    def _hour(self, hour: int) -> str:
        return self.counted(hour, "hour", "").spoken

    def _written(self, hour: int, minute: int) -> str:
        return f"{hour} h {minute:02d}" if minute else f"{hour} h"
