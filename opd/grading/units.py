r"""Units, money and scale words: what an answer is measured in, and the answer without that."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal

NAMES = """
m meter meters metre metres | km kilometer kilometers kilometre kilometres | cm centimeter centimeters centimetre
centimetres | mm millimeter millimeters millimetre millimetres | dm | in inch inches | ft foot feet | yd yard yards
| mi mile miles | g gram grams | kg kilogram kilograms | mg milligram milligrams | lb lbs pound pounds
| oz ounce ounces | gal gallon gallons | L liter liters litre litres | mL milliliter milliliters millilitre millilitres
| s sec secs second seconds | min mins minute minutes | h hr hrs hour hours | day days | week weeks
| month months | year years | rad radian radians | dollar dollars USD | cent cents | euro euros | mph | kph
"""
UNITS = {name: names.split()[0] for names in NAMES.split("|") for name in names.split()}
"""From every name of a unit to its first one."""
MONEY_UNITS = ("dollar", "cent", "euro")
MONEY = re.compile(r"\\?\$|\b(?:dollars?|USD|cents?|euros?|pounds?)\b")
DEGREES = re.compile(
    r"(?:\^\s*\{?\s*\\(?:circ|degree)\b\s*\}?|\\(?:circ|degree)\b|(?<=[\d} ])\s*\bdegrees?\b)"
    r"\s*(?:\b(?P<scale>C|F|Celsius|Fahrenheit)\b)?"
)
_MEASURES = "|".join(sorted((name for name in UNITS if UNITS[name] not in MONEY_UNITS), key=len, reverse=True))
UNIT = rf"(?:{_MEASURES}|units?|square|cubic|sq|cu|per)"
POWER = r"(?:\s*\^\{?[23]\}?)?"
UNIT_TAIL = re.compile(
    rf"(?<=[\d}})\s])\s*(?:(?<=\s)|(?<![A-Za-z])(?=[A-Za-z]{{2}})){UNIT}{POWER}(?:(?:\s*/\s*|\s+){UNIT}{POWER})*\s*$"
)
PIECE = re.compile(r"([A-Za-z]+)(?:\s*\^\{?([23])\}?)?|/")
SPEEDS = {"mph": "mi/h", "kph": "km/h"}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALED = re.compile(rf"(?<![\w.,])(\d[\d,]{{0,19}}(?:\.\d{{1,19}})?)\s+({'|'.join(SCALES)})s?\b", re.IGNORECASE)


def scaled(text: str) -> str:
    """Numbers with a scale word multiplied out.

    >>> scaled("about 1.5 million people")
    'about 1500000 people'
    """

    def product(match: re.Match[str]) -> str:
        value = Decimal(match[1].replace(",", "")) * SCALES[match[2].lower()]
        return f"{value.to_integral_value() if value == value.to_integral_value() else value:f}"

    return SCALED.sub(product, text)


def same_units(a: str, b: str) -> bool:
    """Whether two plain answers may be measured alike: one says no unit that we know, or both say the same.

    Where one leaves out `per hour`, what stands before that is compared.

    >>> same_units("5 km", "5 kilometers"), same_units("5 km", "5"), same_units("5 km", "5 m")
    (True, True, False)
    """
    ours, theirs = unit(a), unit(b)
    if not (ours and theirs) or ours == theirs:
        return True
    if "degree" in ours and "degree" in theirs:
        return len(ours) != len(theirs)
    above = [{name: power for name, power in each.items() if power > 0} for each in (ours, theirs)]
    return above[0] == above[1] and above[0] in (ours, theirs)


def unit(text: str) -> Counter[str]:
    """Powers of the units of a plain answer, in their first names; empty where it has none that we know.

    >>> unit("60 miles per hour"), unit("8 square feet"), unit("5 apples")
    (Counter({'mi': 1, 'h': -1}), Counter({'ft': 2}), Counter())
    """
    if angle := DEGREES.search(text):
        return Counter({"degree": 1} | ({angle["scale"][0]: 1} if angle["scale"] else {}))
    found = Counter({name: 1 for name in _currencies(text)})
    tail = UNIT_TAIL.search(re.sub(r"\s+", " ", MONEY.sub("", text)))
    sign, power = 1, 1
    for piece in PIECE.finditer(re.sub("mph|kph", lambda m: SPEEDS[m[0]], tail[0] if tail else "")):
        if piece[0] in ("/", "per"):
            sign = -1
        elif piece[0] in ("square", "sq", "cubic", "cu"):
            power = 2 if piece[0][0] == "s" else 3
        elif piece[1] not in ("unit", "units"):
            found[UNITS[piece[1]]] += sign * int(piece[2] or power)
            power = 1
    return found


def _currencies(text: str) -> set[str]:
    return {"dollar" if "$" in match else UNITS[match] for match in MONEY.findall(text)}
