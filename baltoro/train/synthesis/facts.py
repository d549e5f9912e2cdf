"""Small things that everybody knows: capitals, opposites, colours, counting, sums of one digit."""

from __future__ import annotations

from random import Random

CAPITALS: dict[str, str] = dict(
    pair.replace("_", " ").split(":", 1)  # pyright: ignore[reportArgumentType]  # two parts each
    for pair in [
        "Algeria:Algiers", "Argentina:Buenos_Aires", "Australia:Canberra", "Austria:Vienna", "Belgium:Brussels",
        "Brazil:Brasilia", "Bulgaria:Sofia", "Canada:Ottawa", "Chile:Santiago", "Colombia:Bogota", "Croatia:Zagreb",
        "Cuba:Havana", "Denmark:Copenhagen", "Egypt:Cairo", "Estonia:Tallinn", "Ethiopia:Addis_Ababa",
        "Finland:Helsinki", "France:Paris", "Germany:Berlin", "Ghana:Accra", "Greece:Athens", "Hungary:Budapest",
        "Iceland:Reykjavik", "India:New_Delhi", "Indonesia:Jakarta", "Iran:Tehran", "Iraq:Baghdad", "Ireland:Dublin",
        "Italy:Rome", "Jamaica:Kingston", "Japan:Tokyo", "Kenya:Nairobi", "Latvia:Riga", "Lebanon:Beirut",
        "Lithuania:Vilnius", "Malaysia:Kuala_Lumpur", "Mexico:Mexico_City", "Morocco:Rabat", "Nepal:Kathmandu",
        "Netherlands:Amsterdam", "Nigeria:Abuja", "Norway:Oslo", "Pakistan:Islamabad", "Peru:Lima",
        "Philippines:Manila", "Poland:Warsaw", "Romania:Bucharest", "Russia:Moscow", "Serbia:Belgrade",
        "Slovakia:Bratislava", "Slovenia:Ljubljana", "Spain:Madrid", "Sweden:Stockholm", "Switzerland:Bern",
        "Thailand:Bangkok", "Tunisia:Tunis", "Turkey:Ankara", "Ukraine:Kyiv", "Uruguay:Montevideo",
        "Venezuela:Caracas", "Vietnam:Hanoi",
    ]
)  # fmt: skip
OPPOSITES = [
    "hot cold", "big small", "old new", "up down", "left right", "day night", "black white", "good bad", "happy sad",
    "fast slow", "high low", "open closed", "early late", "easy hard", "empty full", "long short", "light dark",
    "loud quiet", "near far", "rich poor", "right wrong", "soft hard", "strong weak", "wet dry", "young old",
    "begin end", "love hate", "first last", "inside outside", "before after", "buy sell", "give take", "win lose",
    "true false",
]  # fmt: skip
COLOURS: dict[str, str] = dict(
    pair.replace("_", " ").split(":", 1)  # pyright: ignore[reportArgumentType]  # two parts each
    for pair in [
        "grass:green", "snow:white", "coal:black", "blood:red", "the_sky:blue", "a_lemon:yellow", "the_sun:yellow",
        "milk:white", "a_leaf:green", "a_tomato:red", "chocolate:brown", "the_sea:blue", "a_carrot:orange",
        "a_banana:yellow", "the_night:black", "a_cherry:red",
    ]
)  # fmt: skip
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "bee": "buzz", "lion": "roar"}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COUNTS = {
    "days are in a week": "A week has seven days.", "months are in a year": "A year has twelve months.",
    "minutes are in an hour": "An hour has 60 minutes.", "seconds are in a minute": "A minute has 60 seconds.",
    "hours are in a day": "A day has 24 hours.", "legs does a dog have": "A dog has four legs.",
    "legs does a spider have": "A spider has eight legs.", "wheels does a car have": "A car has four wheels.",
    "eyes do you have": "None. I am a language model.", "letters are in the alphabet": "The alphabet has 26 letters.",
}  # fmt: skip


def fact(r: Random) -> tuple[str, str]:
    """A question and its short answer."""
    return r.choice((_capital, _capital, _opposite, _colour, _neighbour, _sum, _count, _sound, _how_many))(r)


def _capital(r: Random) -> tuple[str, str]:
    country, capital = r.choice(list(CAPITALS.items()))
    if r.random() < 0.2:
        return f"Which country has the capital {capital}?", f"{capital} is the capital of {country}."
    question = r.choice((
        "What is the capital of {c}?", "Capital of {c}?", "Tell me the capital of {c}.", "Do you know the capital of {c}?",
        "Which city is the capital of {c}?",
    ))  # fmt: skip
    return question.replace("{c}", country), f"The capital of {country} is {capital}."


def _opposite(r: Random) -> tuple[str, str]:
    a, b = r.sample(r.choice(OPPOSITES).split(), 2)
    question = r.choice(("What is the opposite of {a}?", "Opposite of {a}?", "Tell me the opposite of {a}."))
    return question.replace("{a}", a), f"The opposite of {a} is {b}."


def _colour(r: Random) -> tuple[str, str]:
    thing, colour = r.choice(list(COLOURS.items()))
    question = r.choice(("What colour is {t}?", "What color is {t}?", "Which colour has {t}?"))
    return question.replace("{t}", thing), f"{thing[:1].upper()}{thing[1:]} is {colour}."


def _neighbour(r: Random) -> tuple[str, str]:
    names = r.choice((DAYS, MONTHS))
    index = r.randrange(len(names))
    step, word = r.choice(((1, "after"), (-1, "before")))
    question = r.choice(("What comes {w} {n}?", "Which one is {w} {n}?"))
    other = names[(index + step) % len(names)]
    return question.replace("{w}", word).replace("{n}", names[index]), f"{other} comes {word} {names[index]}."


def _sum(r: Random) -> tuple[str, str]:
    a, b = r.randint(0, 9), r.randint(0, 9)
    if r.random() < 0.3:
        a, b = max(a, b), min(a, b)
        return r.choice((f"What is {a} - {b}?", f"What is {a} minus {b}?")), f"{a} - {b} = {a - b}."
    asked = (f"What is {a} + {b}?", f"What is {a} plus {b}?", f"{a} + {b}?", f"How much is {a} + {b}?")
    return r.choice(asked), f"{a} + {b} = {a + b}."


def _count(r: Random) -> tuple[str, str]:
    top = r.randint(2, 10)
    question = r.choice((f"Count to {top}.", f"Count from 1 to {top}.", f"Can you count to {NUMBERS[top]}?"))
    return question, ", ".join(map(str, range(1, top + 1))) + "."


def _sound(r: Random) -> tuple[str, str]:
    animal, sound = r.choice(list(SOUNDS.items()))
    return f"What sound does a {animal} make?", f"A {animal} says {sound}."


def _how_many(r: Random) -> tuple[str, str]:
    what, answer = r.choice(list(COUNTS.items()))
    return f"How many {what}?", answer
