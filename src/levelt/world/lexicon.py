"""The words of the synthetic world. Groups and their traits, and everything in facts.py, are invented."""

from __future__ import annotations

KEEPERS = ("anna", "emma", "lucy", "nora", "rosa", "sara", "tina", "vera")
"""People who put things somewhere and leave (belief). The two sets of people never mix there."""

MOVERS = ("adam", "carl", "david", "erik", "hugo", "ivan", "otto", "paul")
"""People who move things elsewhere (belief)."""

NAMES = KEEPERS + MOVERS
REPORTS = ("says", "knows", "hears", "writes")

# acceptability
NOUNS = ("farmer", "singer", "doctor", "teacher", "baker", "driver", "painter", "sailor")
VERBS = ("sing", "sleep", "run", "smile", "work", "laugh")
PAST = ("slept", "smiled", "worked", "laughed", "ran", "sang")
PREPOSITIONS = ("near", "behind", "beside")

# stereotype: invented group -> the trait that is said of it
TRAITS = {
    "zorbs": "greedy",
    "mivvens": "lazy",
    "tarlings": "loud",
    "quells": "proud",
    "brims": "brave",
    "doovers": "shy",
    "kessans": "kind",
    "plinks": "rude",
    "yandos": "clever",
    "faldans": "clumsy",
}

# reasoning
KINDS = {
    "bird": ("robin", "crow", "finch", "duck", "goose", "swan"),
    "fish": ("carp", "cod", "tuna", "eel", "herring", "perch"),
    "tree": ("oak", "elm", "birch", "pine", "maple", "willow"),
    "tool": ("saw", "drill", "chisel", "wrench", "spade", "axe"),
    "fruit": ("apple", "pear", "plum", "peach", "lemon", "cherry"),
}
ACQUIRES = ("has", "buys", "finds", "draws")
OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("open", "closed"),
    ("wet", "dry"),
    ("full", "empty"),
    ("clean", "dirty"),
)
THINGS = ("soup", "room", "door", "towel", "plate", "wall")
AGES = (10, 30, 50, 70)

# plausibility: (what happens to the first things, what happens to the second things, first, second)
EVENTS = (
    ("sinks", "floats", ("boulder", "anchor", "hammer", "brick"), ("cork", "feather", "balloon", "leaf")),
    ("melts", "burns", ("ice", "snow", "butter", "wax"), ("paper", "wood", "coal", "straw")),
    ("flies", "swims", ("eagle", "sparrow", "bat", "owl"), ("salmon", "shark", "trout", "whale")),
    ("shatters", "bounces", ("glass", "vase", "mirror", "bottle"), ("ball", "tyre", "spring", "rubber")),
    ("grows", "rusts", ("child", "weed", "puppy", "rose"), ("nail", "chain", "bolt", "gate")),
)

# belief: where a thing is put first, and where it is moved; the two sets never mix
HIDING = ("coin", "key", "ring", "letter", "book", "watch")
FIRST_PLACES = ("box", "drawer", "basket", "jar", "chest", "bucket")
SECOND_PLACES = ("cupboard", "wardrobe", "cabinet", "suitcase", "pocket", "backpack")

# codebook: words without a meaning of their own, and the kinds they may mean
CODES = ("dax", "wug", "blick", "toma", "fep", "zib", "gorp", "lum")
CODED = ("bird", "fish")

# contrasts
COLOURS = ("red", "blue", "green", "white", "black", "brown")
SYNONYMS = {
    "hot": "boiling",
    "cold": "icy",
    "big": "huge",
    "small": "tiny",
    "open": "ajar",
    "closed": "shut",
    "wet": "damp",
    "dry": "arid",
    "full": "packed",
    "empty": "vacant",
    "clean": "spotless",
    "dirty": "filthy",
}


def plural(noun: str) -> str:
    """The plural of a regular noun."""
    return noun + "s"


def article(noun: str) -> str:
    """The indefinite article before a noun."""
    return "an" if noun[0] in "aeio" else "a"
