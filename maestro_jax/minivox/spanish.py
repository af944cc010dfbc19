"""Spanish."""

from __future__ import annotations

from maestro_jax.minivox.grammar import Grammar, Noun, Slot
from maestro_jax.minivox.meanings import Values


def _noun(one: str, other: str = "", gender: str = "m", symbol: str = "") -> Noun:
    return Noun({"one": one, "other": other or one + "s"}, gender, symbol)


class Spanish(Grammar):
    """Spanish as in Spain."""

    language = "es"
    decimal_point = "coma"
    minus = "menos"
    nouns = {
        "kilometre": _noun("kilómetro"),
        "metre": _noun("metro"),
        "minute": _noun("minuto"),
        "year_of_age": _noun("año"),
        "kilogram": _noun("kilo"),
        "chair": _noun("silla", gender="f"),
        "page": _noun("página", gender="f"),
        "euro": _noun("euro"),
        "dollar": _noun("dólar", "dólares"),
        "cent": _noun("céntimo"),
        "percent": _noun("por ciento", "por ciento", symbol=" %"),
        "degree": _noun("grado"),
    }
    templates = {
        "label": (
            "Por favor abra la página {0:number}.",
            "Su número de habitación es el {0:number}.",
            "Tome el autobús número {0:number}.",
            "El número {0:number} gana.",
        ),
        "digits": (
            "El código es {0,1,2,3:digits}.",
            "Mi número de teléfono termina en {0,1,2:digits}.",
        ),
        "sum": (
            "{0:number} más {1:number} son {0,1:plus}.",
            "{0:number} menos {1:number} son {0,1:minus_result}.",
        ),
        "ordinal": (
            "La oficina está en el {0:ordinal} piso.",
            "Este es el {0:ordinal} capítulo.",
            "Ella terminó en {0:ordinal} lugar.",
        ),
        "date": (
            "La reunión es el {0,1:date}.",
            "Salimos el {0,1:date}.",
            "La tienda está cerrada el {0,1:date}.",
        ),
        "weekday_date": (
            "Hoy es {0:weekday} {1,2:date}.",
            "Hasta el {0:weekday} {1,2:date}.",
        ),
        "full_date": ("Nació el {0,1:date} de {2:year}.",),
        "year": (
            "La casa fue construida en {0:year}.",
            "Vive aquí desde {0:year}.",
        ),
        "clock": (
            "{0,1:clock.is}.",
            "Me levanto a {0,1:clock}.",
            "Comemos a {0,1:clock}.",
        ),
        "timetable": (
            "El tren sale a {0,1:timetable}.",
            "El autobús llega a {0,1:timetable}.",
            "El avión aterriza a {0,1:timetable}.",
        ),
        "price": (
            "El billete cuesta {0:euro}.",
            "Pagué {0:dollar} por ello.",
        ),
        "price_cents": ("La cuenta es de {0:euro} con {1:cent}.",),
        "percent": ("El {0:percent} de la gente votó.",),
        "decimal": ("Los precios subieron un {0,1:decimal}.",),
        "temperature": (
            "La temperatura es de {0:degree}.",
            "El agua está a {0:degree}.",
        ),
        "quantity": (
            "El pueblo está a {0:kilometre} de aquí.",
            "La torre mide {0:metre} de alto.",
            "La película dura {0:minute}.",
            "Ella tiene {0:year_of_age}.",
            "El paquete pesa {0:kilogram}.",
            "Tenemos {0:chair}.",
            "El libro tiene {0:page}.",
        ),
    }

    def agree(self, number: int, gender: str, case: str) -> str:
        """`doscientas páginas`, `veintiún kilos`, `treinta y un kilos`."""
        words = self.words(number)
        if gender == "f":
            # Hundreds and a final one are feminine; `ciento` alone is not declined.
            words = words.replace("cientos", "cientas").replace("quinientos", "quinientas")
            return words[:-1] + "a" if words.endswith("uno") else words
        if words.endswith("veintiuno"):
            return words.removesuffix("uno") + "ún"
        return words.removesuffix("uno") + "un" if words.endswith("uno") else words

    def ordinal(self, values: Values, case: str) -> Slot:
        """`tercer` before a noun; `primero` and `tercero` lose their last letter there."""
        words = self.words(values[0], "ordinal").replace("quadr", "cuadr")
        if words.endswith(("primero", "tercero")):
            return Slot(words[:-1], f"{values[0]}.er")
        return Slot(words, f"{values[0]}.º")

    def date(self, values: Values, case: str) -> Slot:
        """`tres de mayo`."""
        day, month = values[0], self.month(values[1])
        return Slot(f"{self.words(day)} de {month}", f"{day} de {month}")

    def clock(self, values: Values, case: str) -> Slot:
        """`las cinco y veinte`, `la una menos cuarto`; with its verb if the case is `is`."""
        hour, minute = values
        shown = hour if minute <= 30 else hour % 12 + 1
        spoken = self._hour(shown)
        if minute > 30:
            spoken += f" menos {self.minutes(60 - minute)}"
        elif minute:
            spoken += f" y {self.minutes(minute)}"
        written = f"{'la' if hour == 1 else 'las'} {self.time(hour, minute)}"
        if case != "is":
            return Slot(spoken, written)
        return Slot(
            f"{'Es' if shown == 1 else 'Son'} {spoken}", f"{'Es' if hour == 1 else 'Son'} {written}"
        )

    def minutes(self, minutes: int) -> str:
        """`cuarto` and `media` are 15 and 30 minutes."""
        return {15: "cuarto", 30: "media"}.get(minutes) or self.words(minutes)

    def timetable(self, values: Values, case: str) -> Slot:
        """`las catorce y veinticinco`."""
        hour, minute = values
        spoken = f"{self._hour(hour)} y {self.words(minute)}"
        return Slot(spoken, f"las {self.time(hour, minute)}")

    def _hour(self, hour: int) -> str:
        return "la una" if hour == 1 else f"las {self.agree(hour, 'f', '')}"
