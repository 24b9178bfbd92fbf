"""The facts that Harbor knows: one table a topic, written by hand.

A table is a list of `subject: object` pairs separated by commas. Templates may use `{s}` and `{o}` (subject and
object), `{S}` and `{O}` (with a capital), `{a}` and `{A}` (the indefinite article of the subject) and `{ao}` (that of
the object).
The first statement template is the one in which the assistant answers.
"""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """One topic as written: its name, statement, negation and question templates, and its rows."""

    name: str
    statements: tuple[str, ...]
    negations: tuple[str, ...]
    questions: tuple[str, ...]
    rows: str


TABLES: tuple[Table, ...] = (
    Table(
        "capitals",
        ("The capital of {s} is {o}.", "{o} is the capital of {s}.", "{s} has {o} as its capital."),
        ("The capital of {s} is not {o}.", "{o} is not the capital of {s}."),
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Tell me the capital of {s}.",
            "Name the capital of {s}.",
        ),
        """France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Norway: Oslo, Sweden:
        Stockholm, Denmark: Copenhagen, Finland: Helsinki, Iceland: Reykjavik, Ireland: Dublin, England: London,
        Scotland: Edinburgh, Wales: Cardiff, Austria: Vienna, Switzerland: Bern, Belgium: Brussels, the Netherlands:
        Amsterdam, Poland: Warsaw, Hungary: Budapest, Greece: Athens, Turkey: Ankara, Russia: Moscow, Ukraine: Kyiv,
        Romania: Bucharest, Bulgaria: Sofia, Serbia: Belgrade, Croatia: Zagreb, Latvia: Riga, Estonia: Tallinn,
        Lithuania: Vilnius, Egypt: Cairo, Morocco: Rabat, Kenya: Nairobi, Ethiopia: Addis Ababa, Nigeria: Abuja,
        Ghana: Accra, Senegal: Dakar, Japan: Tokyo, China: Beijing, India: New Delhi, Thailand: Bangkok, Vietnam:
        Hanoi, Indonesia: Jakarta, Nepal: Kathmandu, Iran: Tehran, Iraq: Baghdad, South Korea: Seoul, Mongolia:
        Ulaanbaatar, Australia: Canberra, New Zealand: Wellington, Canada: Ottawa, Cuba: Havana, Jamaica: Kingston,
        Peru: Lima, Chile: Santiago, Argentina: Buenos Aires, Brazil: Brasilia, Colombia: Bogota, Venezuela:
        Caracas, Ecuador: Quito, Uruguay: Montevideo, the United States: Washington""",
    ),
    Table(
        "languages",
        ("People in {s} speak {o}.", "{o} is spoken in {s}.", "The language of {s} is {o}."),
        ("People in {s} do not speak {o}.", "{o} is not the language of {s}."),
        ("Which language do people speak in {s}?", "What is the language of {s}?", "Name the language spoken in {s}."),
        """France: French, Germany: German, Italy: Italian, Spain: Spanish, Portugal: Portuguese, Norway: Norwegian,
        Sweden: Swedish, Denmark: Danish, Finland: Finnish, Iceland: Icelandic, England: English, Poland: Polish,
        Hungary: Hungarian, Greece: Greek, Turkey: Turkish, Russia: Russian, Ukraine: Ukrainian, Romania: Romanian,
        Bulgaria: Bulgarian, Serbia: Serbian, Croatia: Croatian, Latvia: Latvian, Estonia: Estonian, Egypt: Arabic,
        Ethiopia: Amharic, Japan: Japanese, China: Mandarin, Thailand: Thai, Vietnam: Vietnamese, Nepal: Nepali,
        Iran: Persian, South Korea: Korean, Mongolia: Mongolian, Brazil: Portuguese, Argentina: Spanish, Austria:
        German, Iraq: Arabic, Australia: English, Peru: Spanish""",
    ),
    Table(
        "currencies",
        ("The currency of {s} is the {o}.", "In {s} people pay with the {o}."),
        ("The currency of {s} is not the {o}.", "In {s} people do not pay with the {o}."),
        ("What is the currency of {s}?", "Which money is used in {s}?", "Name the currency of {s}."),
        """Germany: euro, England: pound, Japan: yen, China: yuan, India: rupee, Russia: rouble, Turkey: lira, Poland:
        zloty, Hungary: forint, Sweden: krona, Denmark: krone, Switzerland: franc, Brazil: real, Mexico: peso, South
        Africa: rand, Thailand: baht, Vietnam: dong, South Korea: won, Indonesia: rupiah, Israel: shekel, Ukraine:
        hryvnia, Romania: leu, Bulgaria: lev, Kenya: shilling, Ghana: cedi, Nigeria: naira, Canada: dollar,
        Malaysia: ringgit, Peru: sol, Morocco: dirham""",
    ),
    Table(
        "continents",
        ("{S} lies in {o}.", "{S} is a part of {o}.", "You find {s} in {o}."),
        ("{S} does not lie in {o}.", "{S} is not a part of {o}."),
        ("On which continent is {s}?", "Where in the world is {s}?", "Name the continent of {s}."),
        """Belgium: Europe, Greece: Europe, Finland: Europe, Portugal: Europe, Poland: Europe, Ireland: Europe,
        Austria: Europe, Egypt: Africa, Kenya: Africa, Ghana: Africa, Nigeria: Africa, Morocco: Africa, Senegal:
        Africa, Ethiopia: Africa, Japan: Asia, China: Asia, India: Asia, Nepal: Asia, Thailand: Asia, Vietnam: Asia,
        Mongolia: Asia, Peru: South America, Chile: South America, Brazil: South America, Ecuador: South America,
        Bolivia: South America, Uruguay: South America, Canada: North America, Mexico: North America, Texas: North
        America, Alaska: North America, Queensland: Oceania, Tasmania: Oceania, Samoa: Oceania, Fiji: Oceania,
        Tonga: Oceania""",
    ),
    Table(
        "animal classes",
        ("{A} {s} is {ao} {o}.", "The {s} is {ao} {o}.", "The {s} belongs to the {o}s."),
        ("{A} {s} is not {ao} {o}.", "The {s} is not {ao} {o}."),
        ("What kind of animal is {a} {s}?", "Which class of animals does the {s} belong to?", "What is {a} {s}?"),
        """dog: mammal, cat: mammal, horse: mammal, whale: mammal, bat: mammal, dolphin: mammal, elephant: mammal,
        tiger: mammal, rabbit: mammal, eagle: bird, owl: bird, penguin: bird, sparrow: bird, ostrich: bird, parrot:
        bird, swan: bird, robin: bird, trout: fish, salmon: fish, shark: fish, tuna: fish, herring: fish, carp:
        fish, eel: fish, snake: reptile, lizard: reptile, turtle: reptile, crocodile: reptile, gecko: reptile,
        iguana: reptile, ant: insect, bee: insect, butterfly: insect, beetle: insect, mosquito: insect, wasp:
        insect, grasshopper: insect, frog: amphibian, toad: amphibian, newt: amphibian, salamander: amphibian""",
    ),
    Table(
        "animal young",
        ("The young of {a} {s} is {ao} {o}.", "A young {s} is called {ao} {o}."),
        ("The young of {a} {s} is not {ao} {o}.", "A young {s} is not called {ao} {o}."),
        ("What is a young {s} called?", "What do we call the young of {a} {s}?", "Name the young of {a} {s}."),
        """dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, pig: piglet, goat: kid, hen: chick, duck:
        duckling, goose: gosling, swan: cygnet, bear: cub, deer: fawn, frog: tadpole, kangaroo: joey, owl: owlet,
        hare: leveret, eagle: eaglet, butterfly: caterpillar, fly: maggot, eel: elver, pigeon: squab, seal: pup""",
    ),
    Table(
        "animal sounds",
        ("{A} {s} says {o}.", "The sound of {a} {s} is {o}."),
        ("{A} {s} does not say {o}.", "The sound of {a} {s} is not {o}."),
        ("What does {a} {s} say?", "Which sound does {a} {s} make?", "What is the sound of {a} {s}?"),
        """dog: woof, cat: meow, cow: moo, sheep: baa, duck: quack, pig: oink, horse: neigh, rooster: cockadoodledoo,
        frog: ribbit, owl: hoot, bee: buzz, snake: hiss, lion: roar, mouse: squeak, crow: caw, turkey: gobble, wolf:
        howl, donkey: heehaw, pigeon: coo, chick: cheep, bear: growl, cricket: chirp""",
    ),
    Table(
        "opposites",
        ("The opposite of {s} is {o}.", "{S} is the opposite of {o}.", "If it is not {s}, it is {o}."),
        ("The opposite of {s} is not {o}.", "{S} is not the opposite of {o}."),
        ("What is the opposite of {s}?", "Which word means the opposite of {s}?", "Name the opposite of {s}."),
        """hot: cold, big: small, tall: short, fast: slow, day: night, up: down, left: right, open: closed, old: new,
        hard: soft, bright: dark, wet: dry, full: empty, rich: poor, early: late, strong: weak, near: far, clean:
        dirty, heavy: light, happy: sad, loud: quiet, sweet: sour, thick: thin, wide: narrow, deep: shallow, brave:
        cowardly, safe: dangerous, cheap: expensive, easy: difficult, first: last, inside: outside, above: below,
        before: after, always: never, begin: finish, buy: sell, win: lose, push: pull, love: hate, laugh: cry, war:
        peace, winter: summer, north: south, east: west, sharp: blunt, smooth: rough, guilty: innocent, awake:
        asleep, alive: dead""",
    ),
    Table(
        "materials",
        ("{A} {s} is made of {o}.", "The {s} is made from {o}.", "We make {a} {s} out of {o}."),
        ("{A} {s} is not made of {o}.", "The {s} is not made from {o}."),
        ("What is {a} {s} made of?", "Which material is {a} {s} made from?", "Name the material of {a} {s}."),
        """window: glass, bottle: glass, mirror: glass, lens: glass, tyre: rubber, eraser: rubber, balloon: rubber,
        table: wood, violin: wood, pencil: wood, barrel: wood, newspaper: paper, envelope: paper, book: paper,
        sweater: wool, scarf: wool, mitten: wool, shirt: cotton, towel: cotton, sock: cotton, sword: steel, needle:
        steel, rail: steel, anvil: iron, horseshoe: iron, brick: clay, vase: clay, teapot: clay, candle: wax,
        crayon: wax, saddle: leather, belt: leather, wallet: leather, kimono: silk, parachute: silk, wire: copper,
        penny: copper, sandcastle: sand, igloo: snow, snowman: snow""",
    ),
    Table(
        "colours",
        ("The colour of {s} is {o}.", "{S} is {o}.", "We say that {s} is {o}."),
        ("The colour of {s} is not {o}.", "{S} is not {o}."),
        ("What is the colour of {s}?", "Which colour is {s}?", "Name the colour of {s}."),
        """grass: green, spinach: green, moss: green, broccoli: green, blood: red, ketchup: red, ruby: red, lava: red,
        snow: white, milk: white, flour: white, salt: white, chalk: white, coal: black, soot: black, tar: black,
        ebony: black, sapphire: blue, denim: blue, cobalt: blue, mustard: yellow, honey: yellow, sulphur: yellow,
        custard: yellow, chocolate: brown, mud: brown, coffee: brown, cinnamon: brown, lavender: purple, amethyst:
        purple, beetroot: purple, pumpkin: orange, marmalade: orange, apricot: orange, bubblegum: pink, ash: grey,
        concrete: grey, pewter: grey""",
    ),
)
