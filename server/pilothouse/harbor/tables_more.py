"""The second half of the facts that Harbor knows; see `tables` for the format."""

from __future__ import annotations

import itertools

from pilothouse.harbor.tables import Table

_SUMS = ", ".join(f"{a} plus {b}: {a + b}" for a in range(1, 11) for b in range(1, 11))
_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
]


def _order(names: list[str], kind: str) -> str:
    """Rows that say which name comes after and before which, round the circle."""
    count = len(names)
    after = [f"the {kind} after {name}: {names[(i + 1) % count]}" for i, name in enumerate(names)]
    before = [f"the {kind} before {name}: {names[i - 1]}" for i, name in enumerate(names)]
    return ", ".join(after + before)


TABLES: tuple[Table, ...] = (
    Table(
        "calendar",
        ("{S} is {o}.", "{O} is {s}."),
        ("{S} is not {o}.", "{O} is not {s}."),
        ("What is {s}?", "Which is {s}?", "Name {s}."),
        f"{_order(_DAYS, 'day')}, {_order(_MONTHS, 'month')}",
    ),
    Table(
        "arithmetic",
        ("{S} is {o}.", "{S} equals {o}.", "{S} makes {o}."),
        ("{S} is not {o}.", "{S} does not make {o}."),
        ("What is {s}?", "How much is {s}?", "Work out {s}."),
        _SUMS,
    ),
    Table(
        "number words",
        ("The number after {s} is {o}.", "After {s} comes {o}."),
        ("The number after {s} is not {o}.", "After {s} does not come {o}."),
        ("What is the number after {s}?", "Which number comes after {s}?", "Name the number after {s}."),
        ", ".join(f"{a}: {b}" for a, b in itertools.pairwise(_NUMBERS)),
    ),
    Table(
        "authors",
        ("{s} was written by {o}.", "{o} is the author of {s}.", "{o} wrote {s}."),
        ("{s} was not written by {o}.", "{o} did not write {s}."),
        ("Who wrote {s}?", "Who is the author of {s}?", "Name the author of {s}."),
        """Hamlet: Shakespeare, Faust: Goethe, Ulysses: Joyce, Emma: Austen, Dracula: Stoker, Frankenstein: Shelley,
        Don Quixote: Cervantes, Moby Dick: Melville, War and Peace: Tolstoy, The Iliad: Homer, The Aeneid: Virgil,
        Oliver Twist: Dickens, Jane Eyre: Bronte, Walden: Thoreau, The Trial: Kafka, Candide: Voltaire, Nineteen
        Eighty Four: Orwell, The Hobbit: Tolkien, Peter Pan: Barrie, Pinocchio: Collodi, Tom Sawyer: Twain, The
        Raven: Poe, Treasure Island: Stevenson, The Jungle Book: Kipling, The Time Machine: Wells, Lolita: Nabokov,
        Les Miserables: Hugo, Robinson Crusoe: Defoe, The Stranger: Camus, The Seagull: Chekhov, Heidi: Spyri, The
        Metamorphoses: Ovid, The Decameron: Boccaccio""",
    ),
    Table(
        "inventors",
        ("The {s} was invented by {o}.", "{o} invented the {s}.", "{o} is the inventor of the {s}."),
        ("The {s} was not invented by {o}.", "{o} did not invent the {s}."),
        ("Who invented the {s}?", "Who is the inventor of the {s}?", "Name the inventor of the {s}."),
        """telephone: Bell, light bulb: Edison, steam engine: Watt, telegraph: Morse, radio: Marconi, dynamite: Nobel,
        printing press: Gutenberg, lightning rod: Franklin, hot air balloon: Montgolfier, safety razor: Gillette,
        diesel engine: Diesel, battery: Volta, world wide web: Berners-Lee, ballpoint pen: Biro, sewing machine:
        Singer, elevator brake: Otis, cotton gin: Whitney, polio vaccine: Salk, saxophone: Sax, revolver: Colt,
        airship: Zeppelin, periodic table: Mendeleev, assembly line: Ford, vacuum flask: Dewar, bouncing bomb:
        Wallis""",
    ),
    Table(
        "elements",
        ("The symbol of {s} is {o}.", "{o} stands for {s}.", "Chemists write {s} as {o}."),
        ("The symbol of {s} is not {o}.", "{o} does not stand for {s}."),
        ("What is the symbol of {s}?", "How do chemists write {s}?", "Name the symbol of {s}."),
        """hydrogen: H, helium: He, carbon: C, nitrogen: N, oxygen: O, fluorine: F, neon: Ne, sodium: Na, magnesium:
        Mg, aluminium: Al, silicon: Si, phosphorus: P, sulphur: S, chlorine: Cl, argon: Ar, potassium: K, calcium:
        Ca, iron: Fe, copper: Cu, zinc: Zn, silver: Ag, tin: Sn, iodine: I, gold: Au, mercury: Hg, lead: Pb, radium:
        Ra, uranium: U, nickel: Ni, tungsten: W, platinum: Pt, lithium: Li""",
    ),
    Table(
        "plurals",
        ("The plural of {s} is {o}.", "{O} is the plural of {s}.", "One {s}, many {o}."),
        ("The plural of {s} is not {o}.", "{O} is not the plural of {s}."),
        ("What is the plural of {s}?", "Which word is the plural of {s}?", "Name the plural of {s}."),
        """mouse: mice, child: children, foot: feet, tooth: teeth, goose: geese, man: men, woman: women, ox: oxen,
        person: people, leaf: leaves, knife: knives, wolf: wolves, life: lives, half: halves, cactus: cacti, fungus:
        fungi, crisis: crises, datum: data, die: dice, louse: lice, shelf: shelves, thief: thieves, loaf: loaves,
        hero: heroes, city: cities, baby: babies""",
    ),
    Table(
        "past tenses",
        ("The past of {s} is {o}.", "Today I {s}, yesterday I {o}.", "The word {o} is the past of {s}."),
        ("The past of {s} is not {o}.", "The word {o} is not the past of {s}."),
        ("What is the past of {s}?", "Which word is the past of {s}?", "Name the past of {s}."),
        """go: went, eat: ate, see: saw, run: ran, take: took, give: gave, come: came, write: wrote, drink: drank,
        swim: swam, fly: flew, know: knew, grow: grew, speak: spoke, break: broke, drive: drove, ride: rode, sing:
        sang, begin: began, forget: forgot, bring: brought, think: thought, buy: bought, catch: caught, teach:
        taught, sleep: slept, feel: felt, stand: stood, find: found, wear: wore, fall: fell, choose: chose""",
    ),
    Table(
        "workers",
        ("{A} {s} works with {o}.", "The {s} spends the day with {o}.", "The work of {a} {s} is about {o}."),
        ("{A} {s} does not work with {o}.", "The work of {a} {s} is not about {o}."),
        ("What does {a} {s} work with?", "What is the work of {a} {s} about?", "With what does {a} {s} spend the day?"),
        """baker: bread, butcher: meat, carpenter: timber, florist: flowers, plumber: pipes, tailor: cloth, dentist:
        teeth, astronomer: stars, beekeeper: bees, shepherd: sheep, librarian: books, banker: money, pilot:
        aeroplanes, sailor: ships, potter: clay, blacksmith: metal, cobbler: shoes, barber: hair, farmer: crops,
        miner: coal, jeweller: gems, poet: verses, geologist: rocks, judge: laws, chemist: molecules, optician:
        glasses, postman: letters, photographer: cameras, historian: archives, locksmith: keys""",
    ),
    Table(
        "homes",
        ("{A} {s} lives in {ao} {o}.", "The home of {a} {s} is {ao} {o}.", "You find {a} {s} in {ao} {o}."),
        ("{A} {s} does not live in {ao} {o}.", "The home of {a} {s} is not {ao} {o}."),
        ("Where does {a} {s} live?", "What is the home of {a} {s}?", "In what does {a} {s} live?"),
        """bee: hive, bird: nest, dog: kennel, horse: stable, pig: sty, spider: web, fox: den, rabbit: burrow, king:
        palace, monk: monastery, soldier: barracks, hen: coop, fish: pond, beaver: lodge, bat: cave, ant: anthill,
        knight: castle, nomad: tent, camel: desert, hermit: hut, goldfish: bowl""",
    ),
)
