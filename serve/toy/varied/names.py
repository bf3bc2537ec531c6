"""Names of what varied scenes hold: colours, shapes, backgrounds, words, fonts, and things that are never there.

A value's key is the name that the toys answer with; the other names are understood as well.
"""

from dataclasses import dataclass

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Color:
    """A colour. others: its other ordinary names. tones: what it looks like on a thing. grounds: what it looks like as
    a background, none where it is never one."""

    others: tuple[str, ...]
    tones: tuple[Rgb, ...]
    grounds: tuple[Rgb, ...] = ()


PALETTE = {
    "red": Color((), ((220, 30, 35), (190, 20, 30), (240, 50, 45))),
    "orange": Color((), ((245, 130, 20), (255, 150, 40))),
    "yellow": Color((), ((245, 215, 30), (255, 235, 60)), ((255, 250, 200), (250, 240, 170))),
    "green": Color((), ((30, 160, 60), (20, 120, 45), (110, 205, 60)), ((205, 240, 205), (15, 60, 30))),
    "blue": Color((), ((35, 80, 225), (25, 45, 160), (70, 140, 250)), ((200, 220, 250), (20, 30, 80))),
    "purple": Color(("violet",), ((135, 45, 175), (160, 80, 210))),
    "pink": Color((), ((250, 130, 185), (240, 95, 160)), ((253, 220, 232),)),
    "brown": Color((), ((125, 75, 35), (100, 58, 28))),
    "teal": Color(("turquoise", "cyan"), ((20, 165, 165), (50, 205, 200))),
    "black": Color((), ((12, 12, 12), (30, 30, 30)), ((14, 14, 14), (28, 28, 28))),
    "white": Color((), ((250, 250, 250), (240, 240, 240)), ((252, 252, 252), (240, 240, 240))),
    "gray": Color(("grey",), ((128, 128, 128), (150, 150, 150)), ((146, 146, 146), (175, 175, 175), (110, 110, 110))),
}
COLOR_NAMES = {other: name for name, color in PALETTE.items() for other in (name, *color.others)}
"""Every colour word, with the name that is answered."""

SHAPE_OTHERS = {
    "circle": ("disc",),
    "square": ("box",),
    "rectangle": ("oblong",),
    "triangle": (),
    "ellipse": ("oval",),
    "star": (),
    "cross": ("plus", "plus sign"),
    "heart": (),
    "diamond": ("rhombus",),
    "moon": ("crescent",),
}
"""Shapes with their other ordinary names."""
SHAPE_NAMES = {other: name for name, others in SHAPE_OTHERS.items() for other in (name, *others)}

STYLE_OTHERS = {"filled": ("solid",), "outlined": ("hollow", "empty")}
"""Whether the inside of a thing is painted."""

GROUNDS = {name: color.grounds for name, color in PALETTE.items() if color.grounds}

WRITTEN = tuple(
    """GO UP NO YES BUS TAXI STOP HELP OPEN EXIT SALE BOOK FIRE SLOW HOME CAFE PARK SHOP MILK HOTEL TRAIN WATER PIZZA
    MUSIC HELLO LOVE FREE COLD WARM DOOR PUSH PULL NEW OLD SUN TEA BAR ZOO GYM ART TOY FISH BIRD TREE RAIN SNOW
    WIND ROAD SHIP BANK CITY FARM FOOD GAME GIFT GOLD HALL IDEA JAZZ KEYS LAKE MAIL MENU NEWS NIGHT OFFICE PAPER
    PIANO PLANT QUIET RADIO RIVER SCHOOL SOUP SPORT STORE SUGAR TICKET TODAY TOWN VIDEO VOTE WELCOME WORLD YOGA
    ZERO BREAD CLOSED DANGER COFFEE""".split()
)
"""Every word that can be written in a scene, in capitals or with one capital."""
LARGEST_NUMBER = 999

NOUNS = {
    "dog": "dogs", "cat": "cats", "horse": "horses", "cow": "cows", "bird": "birds", "fish": "fish", "sheep": "sheep",
    "elephant": "elephants", "person": "people", "man": "men", "woman": "women", "child": "children", "boy": "boys",
    "girl": "girls", "baby": "babies", "face": "faces", "hand": "hands", "car": "cars", "bus": "buses",
    "truck": "trucks", "train": "trains", "boat": "boats", "bicycle": "bicycles", "plane": "planes", "house": "houses",
    "door": "doors", "window": "windows", "street": "streets", "tree": "trees", "flower": "flowers", "leaf": "leaves",
    "mountain": "mountains", "river": "rivers", "cloud": "clouds", "table": "tables", "chair": "chairs",
    "bottle": "bottles", "cup": "cups", "apple": "apples", "banana": "bananas", "cake": "cakes", "pizza": "pizzas",
    "book": "books", "phone": "phones", "computer": "computers", "clock": "clocks", "hat": "hats", "shoe": "shoes",
    "key": "keys", "hexagon": "hexagons", "pentagon": "pentagons", "arrow": "arrows",
    "spiral": "spirals", "cube": "cubes",
}  # fmt: skip
"""Things that no scene holds, with their plurals. People ask about them all the same."""

RARE_NOUNS = tuple(
    """lion tiger bear fox deer rabbit mouse frog snake duck chicken rooster pig goat donkey camel monkey
    penguin owl eagle spider ant bee butterfly shark whale dolphin turtle dinosaur dragon unicorn ghost king
    queen doctor teacher soldier farmer pirate clown dancer singer driver player crowd family friend arm leg eye
    nose mouth ear hair beard finger shirt jacket dress skirt sock glove tie belt umbrella bag backpack suitcase
    purse wallet necklace crown bed couch desk drawer cupboard fridge oven stove sink toilet bathtub mirror
    curtain carpet pillow blanket vase plate bowl fork pan kettle glass bread cheese egg sandwich burger cookie
    pie carrot potato onion pepper mushroom grape lemon cherry strawberry melon pear peach coffee juice beer
    wine milk laptop keyboard screen camera television radio piano drum violin trumpet bat racket skateboard
    surfboard kite sled tent rope ladder hammer saw nail screw wrench drill brush bucket broom shovel rake fence
    gate wall roof chimney tower church tunnel road sidewalk statue fountain bench lantern mailbox flag sail
    anchor rocket satellite helicopter balloon motorcycle scooter tractor van wagon wheel tire engine sunflower
    rose tulip grass bush forest hill volcano beach island lake ocean wave waterfall desert rainbow sunset
    snowman planet feather shell stone rock bone nest octagon trapezoid pyramid cylinder cone ladybug pencil pen
    eraser ruler stapler envelope stamp newspaper magazine map calendar coin banknote ticket toy doll puzzle
    card chessboard""".split()
)
"""More things that no scene holds. They have no tokens of their own: a toy reads them letter by letter, as it will
those that nobody thought of."""

FONT_FILES = {
    "aileron": None,  # built into Pillow (CC0)
    "sans": "DejaVuSans.ttf",  # DejaVu: Bitstream Vera's licence, which allows use and redistribution
    "sans bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif bold": "DejaVuSerif-Bold.ttf",
    "mono bold": "DejaVuSansMono-Bold.ttf",
    "stix bold": "STIXGeneralBol.ttf",  # STIX: SIL Open Font Licence 1.1
}
"""Fonts. Files are those that matplotlib ships, which the tests need anyway; the first is always there."""

SAME_PLURAL = ("fish", "sheep", "deer", "bison", "trout", "shrimp", "fowl")
"""Ends of names whose plural is the same."""


def plural_name(name: str) -> str:
    if name in NOUNS:
        return NOUNS[name]
    if name == "plus":
        return "plus signs"
    if name.endswith(SAME_PLURAL):
        return name
    if name.endswith(("mouse", "woodlouse")):
        return f"{name[:-4]}ice"
    if name[-1] == "y" and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "ch", "sh", "ato")) else f"{name}s"


def with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def enumerated(names: list[str]) -> str:
    """Join as `a, b and c`."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
