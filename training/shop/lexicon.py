"""The words of the shop: goods, styles, places and customers' phrases.

Nouns form the plural with a plain "s".
"""

from typing import Final

COLOURS: Final = (
    "red", "blue", "green", "yellow", "white", "black",
    "grey", "brown", "pink", "orange", "purple", "silver",
)  # fmt: skip
MATERIALS: Final = (
    "oak", "pine", "bamboo", "steel", "glass",
    "marble", "leather", "wool", "linen", "ceramic",
)  # fmt: skip
STYLES: Final = COLOURS + MATERIALS
NOUNS: Final = (
    "lamp", "desk", "chair", "table", "rug", "mirror", "vase", "clock", "sofa", "stool",
    "pillow", "basket", "candle", "curtain", "blanket", "cushion", "drawer", "bookcase",
    "wardrobe", "cabinet", "bed", "frame", "kettle", "teapot", "plate", "bowl", "mug", "tray",
    "planter", "bin",
)  # fmt: skip
CITIES: Final = (
    "Oslo", "Paris", "Rome", "Berlin", "Madrid", "Lisbon", "Vienna", "Prague", "Dublin", "London",
    "Athens", "Warsaw", "Zurich", "Milan", "Lyon", "Porto", "Bergen", "Ghent", "Turin", "Krakow",
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS: Final = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES: Final = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas",
    "Karin", "Leo", "Maria", "Nils", "Olga", "Peter",
)  # fmt: skip
REFERENCE_LETTERS: Final = "ABCDEFGHKLMNPRSTUVWXYZ"

GREETINGS: Final = ("hi", "hello", "good morning", "good evening", "hey", "dear shop")
REQUESTS: Final = (
    "please send", "i would like", "I need", "can I get", "could you send me", "we want to order",
    "I want to buy", "please deliver", "we need", "my order is",
)  # fmt: skip
CONNECTIVES: Final = (", ", " and ", " plus ", ", and ", " as well as ", "; ")
PLACES: Final = (
    "to {}", "delivered to {}", "shipped to {}", "for delivery in {}", "going to {}", "sent to {}",
)  # fmt: skip
TIMES: Final = ("by {}", "before {}", "on {}", "no later than {}", "for {}", "until {}")
GIFTS: Final = (
    "gift-wrapped", "wrapped as a gift", "with gift wrap", "as a present", "it is a gift",
)  # fmt: skip
RUSHES: Final = (
    "express", "by express", "express delivery", "it is urgent", "as fast as you can",
)  # fmt: skip
CLOSINGS: Final = ("", "", "", ".", " please", ", please", ", thanks", ". thank you", "!")
FAREWELLS: Final = ("", "", ".", "!", ", please help", ", what now?", ". thank you")

# Problems of an order: the plain name and the ways to say it.
PROBLEMS: Final[dict[str, tuple[str, ...]]] = {
    "not arrived": (
        "has not arrived yet", "is still not here", "never came", "did not arrive", "is late",
    ),
    "broken": (
        "arrived broken", "came in pieces", "is broken", "was damaged on the way", "has a crack",
    ),
    "wrong item": (
        "is not what I ordered", "is the wrong one", "came in the wrong size",
        "is a wrong item",
    ),
    "missing part": (
        "came with a part missing", "has a missing part", "has no screws", "is not complete",
    ),
    "refund": (
        "was paid twice", "should be refunded", "did not please me, I want my money back",
        "needs a refund",
    ),
    "cancel": (
        "should be cancelled", "is no longer needed", "must be stopped", "was ordered by mistake",
    ),
}  # fmt: skip
