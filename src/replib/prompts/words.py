"""The words and templates that prompts are made of."""

# --- Indirect object identification ---------------------------------------------------------

# {a} and {b} are the two names, {s} is the repeated one; the answer follows the final " to".
IOI_TEMPLATES = (
    "When {a} and {b} arrived at the {place}, {s} handed the {object} to",
    "After {a} and {b} had lunch at the {place}, {s} gave a {object} to",
    "While {a} and {b} were waiting near the {place}, {s} showed the {object} to",
    "Last week {a} and {b} met at the {place}, and {s} sold a {object} to",
    "Yesterday {a} and {b} walked to the {place}. On the way {s} passed the {object} to",
    "Once {a} and {b} were inside the {place}, {s} decided to give the {object} to",
    "Then {a} and {b} had a long talk at the {place}. Later {s} sent a {object} to",
    "Before {a} and {b} left the {place}, {s} wanted to give a {object} to",
    "As soon as {a} and {b} reached the {place}, {s} offered the {object} to",
    "The old friends {a} and {b} worked at the {place}, where {s} gave the {object} to",
    "This morning {a} and {b} cleaned the {place} together, and {s} lent a {object} to",
    "Because {a} and {b} both liked the {place}, {s} went there to bring a {object} to",
    "Since {a} and {b} found a {object} at the {place}, {s} chose to give it to",
    "During the party {a} and {b} danced near the {place}, until {s} threw the {object} to",
    "At noon {a} and {b} opened the {place}, so {s} returned the {object} to",
    "Today {a} and {b} got lost close to the {place}. In the end {s} gave a {object} to",
    "In the evening {a} and {b} drove past the {place}, and {s} said a {object} belonged to",
    "One day {a} and {b} had an argument at the {place}. Afterwards {s} sent the {object} to",
)
NAMES = tuple(
    """
    Aaron Adam Alan Albert Alex Alice Amanda Amy Andrea Andrew Angela Anna Anne Anthony Arthur
    Barbara Ben Benjamin Betty Bill Bob Bobby Brian Bruce Carl Carlos Carol Catherine Charles
    Charlie Chris Christine Christopher Cindy Claire Craig Daniel David Deborah Dennis Diana
    Donald Donna Dorothy Doug Edward Elizabeth Ellen Emily Emma Eric Ethan Eva Evan Frank Fred
    Gary George Grace Greg Hannah Harry Heather Helen Henry Howard Ian Jack Jacob James Jamie Jane
    Janet Jason Jean Jeff Jennifer Jeremy Jerry Jessica Jim Joan Joe John Jonathan Joseph Joshua
    Judy Julia Julie Justin Karen Kate Katherine Keith Kelly Ken Kevin Kim Larry Laura Lauren Lee
    Leo Leonard Lewis Linda Lisa Louis Lucas Lucy Luke Maria Marie Mark Martha Martin Mary Matt
    Matthew Max Megan Melissa Michael Michelle Mike Nancy Nathan Neil Nicholas Nick Nicole Oliver
    Oscar Pamela Patricia Patrick Paul Peter Philip Rachel Ralph Ray Rebecca Richard Robert Roger
    Ron Ronald Ruth Ryan Sally Sam Samuel Sandra Sarah Scott Sean Sharon Simon Sophie Stephanie
    Stephen Steve Steven Stuart Susan Ted Thomas Tim Tom Tony Vincent Walter Wendy William
    """.split()  # noqa: SIM905
)
PLACES = tuple(
    """
    airport bakery bank beach bridge cafe castle church farm garden gym harbor hospital hotel
    house lake library market museum office park restaurant river school station store theater zoo
    """.split()  # noqa: SIM905
)
OBJECTS = tuple(
    """
    basket blanket book box camera cake coat coin drum flower guitar hammer hat kite ladder
    lamp lemon letter map mirror necklace newspaper pencil phone photo ring rope shirt ticket violin
    """.split()  # noqa: SIM905
)


# --- Colored Objects (the paper's lists, from its code, cobjs_data.py) -------------------------

SURFACES = ("table", "desk", "floor")
STARTERS = ("there is", "you see", "I see")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
COLORED_OBJECTS = tuple(
    """
    pencil notebook pen cup plate jug mug puzzle textbook leash necklace bracelet bottle ball
    envelope lighter bowl
    """.split()  # noqa: SIM905
)


# --- Control tasks ---------------------------------------------------------------------------

GREATER_THAN_TEMPLATE = "The {noun} lasted from the year {century}{start} to the year {century}"
NOUNS = tuple(
    """
    battle campaign case challenge conflict contract crisis debate dispute experiment festival
    flood friendship investigation journey marriage mission movement operation peace plan program
    project revolution rule search series strike struggle study talks tour trial trip visit voyage
    war work
    """.split()  # noqa: SIM905
)
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
CAPITAL_TEMPLATES = (
    "The capital of {country} is the city of",
    "The capital city of {country} is called",
    "If you visit the capital of {country}, you are in the city of",
    "Q: What is the capital of {country}?\nA:",
    "They live in the capital of {country}, a city called",
    "The government of {country} meets in its capital city of",
    "The leader of {country} works in the city of",
    "We flew to {country} and landed in its capital,",
)
CAPITALS = dict(
    pair.strip().split(": ")
    for pair in """
    Afghanistan: Kabul, Albania: Tirana, Algeria: Algiers, Argentina: Buenos Aires,
    Armenia: Yerevan, Australia: Canberra, Austria: Vienna, Bangladesh: Dhaka, Belarus: Minsk,
    Belgium: Brussels, Bulgaria: Sofia, Cambodia: Phnom Penh, Canada: Ottawa, Chile: Santiago,
    China: Beijing, Croatia: Zagreb, Cuba: Havana, Denmark: Copenhagen, Ecuador: Quito,
    Egypt: Cairo, Estonia: Tallinn, Ethiopia: Addis Ababa, Finland: Helsinki, France: Paris,
    Georgia: Tbilisi, Germany: Berlin, Ghana: Accra, Greece: Athens, Hungary: Budapest,
    Iceland: Reykjavik, India: New Delhi, Indonesia: Jakarta, Iran: Tehran, Iraq: Baghdad,
    Ireland: Dublin, Italy: Rome, Jamaica: Kingston, Japan: Tokyo, Jordan: Amman, Kenya: Nairobi,
    Latvia: Riga, Lebanon: Beirut, Libya: Tripoli, Lithuania: Vilnius, Malaysia: Kuala Lumpur,
    Morocco: Rabat, Nepal: Kathmandu, Nigeria: Abuja, Norway: Oslo, Pakistan: Islamabad,
    Peru: Lima, Poland: Warsaw, Portugal: Lisbon, Romania: Bucharest, Russia: Moscow,
    Serbia: Belgrade, Spain: Madrid, Sudan: Khartoum, Sweden: Stockholm, Syria: Damascus,
    Thailand: Bangkok, Turkey: Ankara, Ukraine: Kyiv, Venezuela: Caracas, Vietnam: Hanoi,
    Zimbabwe: Harare
    """.split(",")  # noqa: SIM905
)
