"""Polish."""

from __future__ import annotations

from maestro_jax.minivox.grammar import Grammar, Noun, Slot
from maestro_jax.minivox.meanings import Values


def _noun(one: str, few: str, many: str, gender: str = "m", symbol: str = "") -> Noun:
    return Noun({"one": one, "few": few, "many": many, "other": many}, gender, symbol)


# Endings of an ordinal by case, after -y and after -i.
_ENDINGS = {
    "": ("y", "i"),
    "genitive": ("ego", "iego"),
    "locative": ("ym", "im"),
    "neuter": ("e", "ie"),
    "feminine": ("a", "ia"),
    "feminine_locative": ("ej", "iej"),
}
# The i of `trzeci` only softens a consonant; that of `drugi` goes in the feminine.
_EXCEPTIONS = {"drugi": {"feminine": "druga"}}

_WEEKDAYS_ACCUSATIVE = {
    "środa": "w środę",
    "sobota": "w sobotę",
    "niedziela": "w niedzielę",
    "wtorek": "we wtorek",
}


class Polish(Grammar):
    """Polish: every word of an ordinal is declined; 2, 3 and 4 take another plural than 5."""

    language = "pl"
    decimal_point = "przecinek"
    quarter = "kwadrans"
    nouns = {
        "kilometre": _noun("kilometr", "kilometry", "kilometrów"),
        "metre": _noun("metr", "metry", "metrów"),
        "minute": _noun("minutę", "minuty", "minut", "f"),
        "year_of_age": _noun("rok", "lata", "lat"),
        "kilogram": _noun("kilogram", "kilogramy", "kilogramów"),
        "chair": _noun("krzesło", "krzesła", "krzeseł", "n"),
        "page": _noun("stronę", "strony", "stron", "f"),
        "euro": _noun("euro", "euro", "euro", "n"),
        "dollar": _noun("dolara", "dolary", "dolarów"),
        "cent": _noun("cent", "centy", "centów"),
        "percent": _noun("procent", "procent", "procent", symbol="%"),
        "degree": _noun("stopień", "stopnie", "stopni"),
    }
    templates = {
        "label": (
            "Proszę otworzyć stronę {0:number}.",
            "Numer pokoju to {0:number}.",
            "Proszę wsiąść do autobusu numer {0:number}.",
            "Wygrywa numer {0:number}.",
        ),
        "digits": (
            "Kod to {0,1,2,3:digits}.",
            "Mój numer telefonu kończy się na {0,1,2:digits}.",
        ),
        "sum": (
            "{0:number} plus {1:number} to {0,1:plus}.",
            "{0:number} minus {1:number} to {0,1:minus_result}.",
        ),
        "ordinal": (
            "Biuro jest na {0:ordinal.locative} piętrze.",
            "To jest {0:ordinal} rozdział.",
            "Ona zajęła {0:ordinal.neuter} miejsce.",
        ),
        "date": (
            "Spotkanie jest {0,1:date}.",
            "Wyjeżdżamy {0,1:date}.",
            "Sklep jest zamknięty {0,1:date}.",
        ),
        "weekday_date": (
            "Dziś jest {0:weekday}, {1,2:date}.",
            "Do zobaczenia {0:weekday.accusative}, {1,2:date}.",
        ),
        "full_date": ("Urodził się {0,1:date} {2:year.genitive} roku.",),
        "year": (
            "Dom zbudowano w {0:year.locative} roku.",
            "Mieszka tu od {0:year.genitive} roku.",
        ),
        "clock": (
            "Jest {0,1:clock}.",
            "Wstaję {0,1:clock.at}.",
            "Jemy {0,1:clock.at}.",
        ),
        "timetable": (
            "Pociąg odjeżdża o {0,1:timetable}.",
            "Autobus przyjeżdża o {0,1:timetable}.",
            "Samolot ląduje o {0,1:timetable}.",
        ),
        "price": (
            "Bilet kosztuje {0:euro}.",
            "Zapłaciłem za to {0:dollar}.",
        ),
        "price_cents": ("Rachunek wynosi {0:euro} i {1:cent}.",),
        "percent": ("Głosowało {0:percent} ludzi.",),
        "decimal": ("Ceny wzrosły o {0,1:decimal}.",),
        "temperature": (
            "Temperatura wynosi {0:degree}.",
            "Woda ma {0:degree}.",
        ),
        "quantity": (
            "Wieś leży {0:kilometre} stąd.",
            "Wieża ma {0:metre} wysokości.",
            "Film trwa {0:minute}.",
            "Ona ma {0:year_of_age}.",
            "Paczka waży {0:kilogram}.",
            "Mamy {0:chair}.",
            "Książka ma {0:page}.",
        ),
    }

    def agree(self, number: int, gender: str, case: str) -> str:
        """`dwie minuty`, `dwadzieścia dwie minuty`."""
        words = self.words(number)
        return words[:-1] + "ie" if gender == "f" and words.endswith("dwa") else words

    def ordinal(self, values: Values, case: str) -> Slot:
        """`trzeci`, `trzecim`, `trzecie`."""
        return Slot(self._decline(self.words(values[0], "ordinal"), case), f"{values[0]}.")

    def year(self, values: Values, case: str) -> Slot:
        """Years are ordinals: `tysiąc dziewięćset osiemdziesiątego siódmego`."""
        return Slot(self._decline(self.words(values[0], "ordinal"), case), str(values[0]))

    def _decline(self, ordinal: str, case: str) -> str:
        """Puts an ordinal into a case; hundreds and thousands before it stay cardinals."""
        words = []
        for word in ordinal.split():
            stem, last = word[:-1], word[-1]
            if word in _EXCEPTIONS and case in _EXCEPTIONS[word]:
                word = _EXCEPTIONS[word][case]
            elif last in "yi":
                word = stem + _ENDINGS[case][last == "i"]
            words.append(word)
        return " ".join(words)

    def weekday(self, values: Values, case: str) -> Slot:
        """`poniedziałek`; accusative with its preposition, `w poniedziałek`."""
        name = super().weekday(values, "").spoken
        if case == "accusative":
            name = _WEEKDAYS_ACCUSATIVE.get(name, f"w {name}")
        return Slot(name, name)

    def date(self, values: Values, case: str) -> Slot:
        """`trzeciego maja`."""
        day, month = self.ordinal(values[:1], "genitive"), self.month(values[1])
        return Slot(f"{day.spoken} {month}", f"{values[0]} {month}")

    def clock(self, values: Values, case: str) -> Slot:
        """`dwadzieścia po piątej`, `wpół do szóstej`, `za kwadrans szósta`."""
        hour, minute = values
        following = hour % 12 + 1
        preposition = "o " if case == "at" else ""
        if minute == 0:
            case = "feminine_locative" if preposition else "feminine"
            spoken = preposition + self._hour(hour, case)
        elif minute == 30:
            spoken = f"{preposition}wpół do {self._hour(following, 'feminine_locative')}"
        elif minute < 30:
            spoken = f"{self.minutes(minute)} po {self._hour(hour, 'feminine_locative')}"
        else:
            spoken = f"za {self.minutes(60 - minute)} {self._hour(following, 'feminine')}"
        return Slot(spoken, preposition + self.time(hour, minute))

    def timetable(self, values: Values, case: str) -> Slot:
        """`czternastej zero pięć`."""
        hour, minute = values
        zero = "zero " if minute < 10 else ""
        spoken = f"{self._hour(hour, 'feminine_locative')} {zero}{self.words(minute)}"
        return Slot(spoken, self.time(hour, minute))

    def _hour(self, hour: int, case: str) -> str:
        return self._decline(self.words(hour, "ordinal"), case)
