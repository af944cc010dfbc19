"""Sentences: spoken forms written down by hand, and no sentence with two meanings."""

import string

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.minivox.config import CALENDAR, EVERYDAY
from maestro_jax.minivox.corpus import make_example
from maestro_jax.minivox.meanings import KINDS, Meaning, draw_meaning, split_of
from maestro_jax.minivox.sentences import _GRAMMARS, SPEAKABLE, say

TRAIN_AT_21_35 = Meaning("timetable", 0, (21, 35))
BUS_AT_14_05 = Meaning("timetable", 1, (14, 5))
HALF_PAST_FIVE = Meaning("clock", 1, (5, 30))
QUARTER_TO_ONE = Meaning("clock", 0, (12, 45))
ONE_O_CLOCK = Meaning("clock", 2, (1, 0))
BORN = Meaning("full_date", 0, (3, 5, 1987))
SATURDAY = Meaning("weekday_date", 1, (5, 1, 9))
FLOOR_21 = Meaning("ordinal", 0, (21,))
FIRST_PLACE = Meaning("ordinal", 2, (1,))
PAGES_221 = Meaning("quantity", 6, (221,))
MINUTES_22 = Meaning("quantity", 2, (22,))
KILOMETRES_3 = Meaning("quantity", 0, (3,))
AGE_2 = Meaning("quantity", 3, (2,))
BILL = Meaning("price_cents", 0, (21, 2))
PRICES_UP = Meaning("decimal", 0, (3, 5))
FROST = Meaning("temperature", 0, (-4,))
BUILT_1905 = Meaning("year", 0, (1905,))
NINETY_ONE = Meaning("label", 1, (91,))


@pytest.mark.parametrize(
    ("meaning", "language", "text"),
    [
        (TRAIN_AT_21_35, "en", "the train leaves at twenty one thirty five"),
        (TRAIN_AT_21_35, "de", "der zug fährt um einundzwanzig uhr fünfunddreißig ab"),
        (TRAIN_AT_21_35, "fr", "le train part à vingt et une heures trente cinq"),
        (TRAIN_AT_21_35, "es", "el tren sale a las veintiuna y treinta y cinco"),
        (TRAIN_AT_21_35, "pl", "pociąg odjeżdża o dwudziestej pierwszej trzydzieści pięć"),
        (TRAIN_AT_21_35, "sl", "vlak odpelje ob enaindvajseti uri in petintrideset minut"),
        (BUS_AT_14_05, "en", "the bus comes at fourteen oh five"),
        (BUS_AT_14_05, "pl", "autobus przyjeżdża o czternastej zero pięć"),
        (HALF_PAST_FIVE, "en", "i get up at half past five"),
        (HALF_PAST_FIVE, "de", "ich stehe um halb sechs auf"),
        (HALF_PAST_FIVE, "fr", "je me lève à cinq heures et demie"),
        (HALF_PAST_FIVE, "es", "me levanto a las cinco y media"),
        (HALF_PAST_FIVE, "pl", "wstaję o wpół do szóstej"),
        (HALF_PAST_FIVE, "sl", "vstanem ob pol šestih"),
        (QUARTER_TO_ONE, "en", "it is quarter to one"),
        (QUARTER_TO_ONE, "de", "es ist viertel vor eins"),
        (QUARTER_TO_ONE, "fr", "il est une heure moins le quart"),
        (QUARTER_TO_ONE, "es", "es la una menos cuarto"),
        (QUARTER_TO_ONE, "pl", "jest za kwadrans pierwsza"),
        (QUARTER_TO_ONE, "sl", "ura je četrt do enih"),
        (ONE_O_CLOCK, "en", "we eat at one o'clock"),
        (ONE_O_CLOCK, "de", "wir essen um ein uhr"),
        (ONE_O_CLOCK, "es", "comemos a la una"),
        (ONE_O_CLOCK, "sl", "jemo ob enih"),
        (BORN, "en", "he was born on the third of may nineteen eighty seven"),
        (BORN, "de", "er wurde am dritten mai neunzehnhundertsiebenundachtzig geboren"),
        (BORN, "fr", "il est né le trois mai mille neuf cent quatre vingt sept"),
        (BORN, "es", "nació el tres de mayo de mil novecientos ochenta y siete"),
        (
            BORN,
            "pl",
            "urodził się trzeciego maja tysiąc dziewięćset osiemdziesiątego siódmego roku",
        ),
        (BORN, "sl", "rodil se je tretjega maja tisoč devetsto sedeminosemdeset"),
        (SATURDAY, "en", "see you on saturday the first of september"),
        (SATURDAY, "de", "bis samstag den ersten september"),
        (SATURDAY, "fr", "à samedi premier septembre"),
        (SATURDAY, "es", "hasta el sábado uno de septiembre"),
        (SATURDAY, "pl", "do zobaczenia w sobotę pierwszego września"),
        (SATURDAY, "sl", "se vidimo v soboto prvega septembra"),
        (FLOOR_21, "de", "das büro ist im einundzwanzigsten stock"),
        (FLOOR_21, "fr", "le bureau est au vingt et unième étage"),
        (FLOOR_21, "es", "la oficina está en el vigésimo primer piso"),
        (FLOOR_21, "pl", "biuro jest na dwudziestym pierwszym piętrze"),
        (FLOOR_21, "sl", "pisarna je v enaindvajsetem nadstropju"),
        (FIRST_PLACE, "fr", "elle a fini à la première place"),
        (FIRST_PLACE, "pl", "ona zajęła pierwsze miejsce"),
        (PAGES_221, "en", "the book has two hundred and twenty one pages"),
        (PAGES_221, "de", "das buch hat zweihunderteinundzwanzig seiten"),
        (PAGES_221, "fr", "le livre a deux cent vingt et une pages"),
        (PAGES_221, "es", "el libro tiene doscientas veintiuna páginas"),
        (PAGES_221, "pl", "książka ma dwieście dwadzieścia jeden stron"),
        (PAGES_221, "sl", "knjiga ima dvesto enaindvajset strani"),
        (MINUTES_22, "pl", "film trwa dwadzieścia dwie minuty"),
        (MINUTES_22, "sl", "film traja dvaindvajset minut"),
        (KILOMETRES_3, "pl", "wieś leży trzy kilometry stąd"),
        (KILOMETRES_3, "sl", "vas je oddaljena tri kilometre"),
        (AGE_2, "pl", "ona ma dwa lata"),
        (AGE_2, "sl", "stara je dve leti"),
        (BILL, "es", "la cuenta es de veintiún euros con dos céntimos"),
        (BILL, "pl", "rachunek wynosi dwadzieścia jeden euro i dwa centy"),
        (BILL, "sl", "račun znaša enaindvajset evrov in dva centa"),
        (PRICES_UP, "de", "die preise stiegen um drei komma fünf prozent"),
        (PRICES_UP, "sl", "cene so zrasle za tri cele pet odstotka"),
        (FROST, "fr", "la température est de moins quatre degrés"),
        (FROST, "pl", "temperatura wynosi minus cztery stopnie"),
        (FROST, "sl", "temperatura znaša minus štiri stopinje"),
        (BUILT_1905, "en", "the house was built in nineteen oh five"),
        (BUILT_1905, "de", "das haus wurde neunzehnhundertfünf gebaut"),
        (BUILT_1905, "pl", "dom zbudowano w tysiąc dziewięćset piątym roku"),
        (BUILT_1905, "sl", "hiša je bila zgrajena leta tisoč devetsto pet"),
        (NINETY_ONE, "fr", "votre numéro de chambre est le quatre vingt onze"),
    ],
)
def test_says_it_as_a_speaker_would(meaning, language, text):
    assert say(meaning, language).text == text


@pytest.mark.parametrize(
    ("meaning", "language", "raw_text"),
    [
        (TRAIN_AT_21_35, "de", "Der Zug fährt um 21:35 ab."),
        (TRAIN_AT_21_35, "fr", "Le train part à 21 h 35."),
        (BORN, "en", "He was born on 3 May 1987."),
        (BORN, "sl", "Rodil se je 3. maja 1987."),
        (PRICES_UP, "en", "Prices rose by 3.5%."),
        (FLOOR_21, "en", "The office is on the 21st floor."),
        (QUARTER_TO_ONE, "es", "Son las 12:45."),
        (PAGES_221, "pl", "Książka ma 221 stron."),
    ],
)
def test_writes_it_as_a_newspaper_would(meaning, language, raw_text):
    assert say(meaning, language).raw_text == raw_text


def test_every_language_has_every_template():
    for kind, drawn in KINDS.items():
        for language in SPEAKABLE:
            assert len(_GRAMMARS[language].templates[kind]) == len(drawn.draws), (kind, language)


def test_texts_hold_words_only():
    rng = np.random.default_rng(1)
    for _ in range(1500):
        meaning = draw_meaning(rng)
        for language in SPEAKABLE:
            text = say(meaning, language).text
            assert text == text.lower()
            assert not set(text) & set(string.digits + string.punctuation.replace("'", "")), text
            assert "  " not in text


@pytest.mark.extended
def test_different_meanings_are_different_sentences():
    rng = np.random.default_rng(2)
    meanings = {draw_meaning(rng) for _ in range(6000)}
    for language in SPEAKABLE:
        texts = {say(meaning, language).text for meaning in meanings}
        assert len(texts) == len(meanings), language


def test_splits_are_as_large_as_they_should_be():
    rng = np.random.default_rng(3)
    meanings = {draw_meaning(rng) for _ in range(8000)}
    parts = [split_of(meaning) for meaning in meanings]
    for part, expected in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert parts.count(part) / len(parts) == pytest.approx(expected, abs=0.01)


def test_unknown_language_names_the_known_ones():
    with pytest.raises(UserError, match=r"'xx'.*en de fr es pl sl"):
        say(BORN, "xx")


def test_kinds_of_a_corpus_are_drawn_by_their_weights():
    rng = np.random.default_rng(0)
    kinds = ("date", "full_date")
    drawn = [draw_meaning(rng, kinds).kind for _ in range(400)]
    assert set(drawn) == set(kinds)
    # Weights of 2 and 0.5.
    assert 290 < drawn.count("date") < 350


def test_domains_share_letters_and_not_kinds():
    assert not set(EVERYDAY.kinds) & set(CALENDAR.kinds)
    assert {*EVERYDAY.kinds, *CALENDAR.kinds} == set(KINDS)
    old, new = (
        {letter for n in range(500) for letter in make_example(corpus, "text_de_train", n).text}
        for corpus in (EVERYDAY, CALENDAR)
    )
    # The tasks of both read the vocabulary of the first.
    assert new <= old
