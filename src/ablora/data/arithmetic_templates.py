"""The texts and calculations that `arithmetic_source` draws its problems from.

`draws` gives each letter its range ("a:2-9", both ends included). `calc` gives the steps in order, each "x op y"
without blanks, x and y being letters, constants or earlier results (r1, r2, ...). {name} and {friend} are people,
{things} and {others} are countable things.
"""

from typing import NamedTuple


class Template(NamedTuple):
    """A problem with blanks: its text, the ranges of its numbers, and its calculation."""

    text: str
    draws: str
    calc: str


# fmt: off
NAMES = (
    "Ana", "Ben", "Carla", "Dan", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Kim", "Lena",
    "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tara", "Tom", "Vera", "Will", "Yara", "Zoe",
)
THINGS = (
    "apples", "balls", "beads", "books", "cards", "coins", "cookies", "cups", "eggs",
    "flowers", "keys", "lemons", "marbles", "pens", "plums", "rings", "shells", "stamps",
)
# fmt: on

TEMPLATES: tuple[Template, ...] = (
    # two steps
    Template(
        "{name} buys {a} boxes of {things} with {b} {things} in each box. {friend} then gives {name} {c} more. "
        "How many {things} does {name} have now?",
        "a:2-9 b:2-9 c:2-19",
        "a*b r1+c",
    ),
    Template(
        "{name} has {a} bags, and each bag holds {b} {things}. {name} gives {c} of the {things} to {friend}. "
        "How many {things} does {name} have left?",
        "a:2-9 b:2-9 c:2-19",
        "a*b r1-c",
    ),
    Template(
        "There are {a} {things} on one shelf and {b} on another. {name} packs all of them into {c} boxes, "
        "the same number in each. How many {things} go into one box?",
        "a:2-30 b:2-30 c:2-9",
        "a+b r1/c",
    ),
    Template(
        "{name} finds {a} {things} in the morning and {b} in the evening, but loses {c} of them on the way home. "
        "How many {things} does {name} bring home?",
        "a:3-30 b:3-30 c:2-19",
        "a+b r1-c",
    ),
    Template(
        "A book has {c} pages. {name} reads {a} pages a day for {b} days. How many pages are left to read?",
        "a:2-9 b:2-9 c:20-99",
        "a*b c-r1",
    ),
    Template(
        "A shop sells {a} {things} on Monday and {b} more than that on Tuesday. "
        "How many {things} does the shop sell on the two days together?",
        "a:3-40 b:2-20",
        "a+b a+r1",
    ),
    Template(
        "{name} had {a} {things}, gave {b} of them to {friend}, and shared the rest equally among {c} children. "
        "How many {things} did each child get?",
        "a:8-60 b:2-20 c:2-9",
        "a-b r1/c",
    ),
    Template(
        "One ticket costs {a} dollars. {name} buys {b} tickets and pays with {c} dollars. "
        "How many dollars does {name} get back?",
        "a:2-9 b:2-9 c:20-99",
        "a*b c-r1",
    ),
    Template(
        "{name} shares {a} {things} equally among {b} friends. Every friend already had {c} {things}. "
        "How many {things} does each friend have now?",
        "a:6-72 b:2-9 c:2-19",
        "a/b r1+c",
    ),
    Template(
        "A rope of {a} meters is cut into {b} equal parts. {name} uses {c} of the parts for a swing. "
        "How many meters of rope does the swing take?",
        "a:8-99 b:4-9 c:2-3",
        "a/b r1*c",
    ),
    Template(
        "In a hall there are {a} tables. Each table has {b} red chairs and {c} blue chairs. "
        "How many chairs are there in the hall?",
        "a:2-6 b:2-9 c:2-9",
        "b+c r1*a",
    ),
    Template(
        "{name} made {a} {things} and {friend} made {b} fewer than {name}. "
        "How many {things} did the two of them make together?",
        "a:9-50 b:2-30",
        "a-b a+r1",
    ),
    # three steps
    Template(
        "{name} buys {a} packs of {b} {things} and {c} packs of {d} {others}. How many things does {name} buy in all?",
        "a:2-9 b:2-9 c:2-9 d:2-9",
        "a*b c*d r1+r2",
    ),
    Template(
        "{name} fills {a} baskets with {b} {things} each, throws away {c} bad ones, and shares the others equally "
        "among {d} neighbors. How many {things} does each neighbor get?",
        "a:2-9 b:2-9 c:2-15 d:2-9",
        "a*b r1-c r2/d",
    ),
    Template(
        "Every day {name} collects {a} {things} and {friend} collects {b}. They do this for {c} days and then "
        "sell {d} of the {things}. How many {things} do they still have?",
        "a:2-9 b:2-9 c:2-5 d:2-30",
        "a+b r1*c r2-d",
    ),
    Template(
        "A truck brings {a} crates with {b} {things} each to a store that already has {c}. By night {d} {things} "
        "are sold. How many {things} are left in the store?",
        "a:2-9 b:2-9 c:2-30 d:2-40",
        "a*b r1+c r2-d",
    ),
    Template(
        "{name} divides {a} {things} equally among {b} bowls and adds {c} to every bowl. "
        "How many {things} are there in {d} of these bowls?",
        "a:10-60 b:4-9 c:2-9 d:2-3",
        "a/b r1+c r2*d",
    ),
    Template(
        "Every day {name} earns {a} dollars and spends {b} of them on the bus. After {c} such days {name} gets a gift "
        "of {d} dollars. How many dollars does {name} have?",
        "a:6-20 b:2-9 c:2-6 d:2-20",
        "a-b r1*c r2+d",
    ),
    Template(
        "{name} has {a} {things}. {friend} has twice as many. They put them together and give {b} away. "
        "How many {things} do they keep?",
        "a:3-30 b:2-40",
        "a*2 a+r1 r2-b",
    ),
    Template(
        "{name} bakes {a} trays of {b} cookies and packs them into bags of {c}. {friend} brings {d} more bags. "
        "How many bags do they have?",
        "a:2-9 b:2-9 c:2-9 d:2-15",
        "a*b r1/c r2+d",
    ),
    Template(
        "On a walk {name} counts {a} birds, {friend} counts {b}, and their teacher counts {c}. They write all of them "
        "on {d} pages, the same number on each. How many birds are on one page?",
        "a:2-20 b:2-20 c:2-20 d:2-6",
        "a+b r1+c r2/d",
    ),
    Template(
        "{name} lays {a} rows of {b} {things}. {friend} lays {c} rows of {d}. "
        "How many more {things} does {name} lay than {friend}?",
        "a:4-9 b:4-9 c:2-6 d:2-6",
        "a*b c*d r1-r2",
    ),
    Template(
        "A cup costs {b} dollars and a plate costs {c} dollars. {name} buys {a} of each and pays with {d} dollars. "
        "How many dollars does {name} get back?",
        "a:2-6 b:2-9 c:2-9 d:20-99",
        "b+c r1*a d-r2",
    ),
    Template(
        "A bus starts with {a} people. At the first stop {b} get off and {c} get on. At the next stop {d} get off. "
        "How many people are on the bus now?",
        "a:10-50 b:2-19 c:2-19 d:2-19",
        "a-b r1+c r2-d",
    ),
    # four steps
    Template(
        "{name} buys {a} bags of {b} {things} and {c} bags of {d} {things}, and gives {e} of the {things} to {friend}. "
        "How many {things} does {name} keep?",
        "a:2-7 b:2-7 c:2-7 d:2-7 e:2-20",
        "a*b c*d r1+r2 r3-e",
    ),
    Template(
        "{name} and {friend} save {a} and {b} dollars a week. After {c} weeks they spend {d} dollars and share the "
        "rest equally among {e} people. How many dollars does each person get?",
        "a:2-9 b:2-9 c:2-6 d:2-20 e:2-6",
        "a+b r1*c r2-d r3/e",
    ),
    Template(
        "A farm has {a} pens with {b} sheep each. It buys {c} sheep, sells {d}, and moves half of the rest to a hill. "
        "How many sheep are on the hill?",
        "a:2-9 b:2-9 c:2-20 d:2-20",
        "a*b r1+c r2-d r3/2",
    ),
    Template(
        "A pen costs {b} dollars and a map costs {d} dollars. {name} buys {a} pens and {c} maps and pays with {e} "
        "dollars. How many dollars does {name} get back?",
        "a:2-7 b:2-7 c:2-7 d:2-7 e:30-99",
        "a*b c*d r1+r2 e-r3",
    ),
    Template(
        "{name} has {a} {things} and {friend} has three times as many. They put them together, find {b} more and "
        "lose {c}. How many {things} do they have in the end?",
        "a:2-20 b:2-19 c:2-19",
        "a*3 a+r1 r2+b r3-c",
    ),
    Template(
        "{name} cuts {a} meters of tape into {b} equal pieces and uses {c} of them. Then {name} uses {d} meters of "
        "another tape, of which {e} meters are torn off again. How many meters are in use?",
        "a:10-72 b:4-9 c:2-3 d:10-20 e:2-9",
        "a/b r1*c r2+d r3-e",
    ),
    Template(
        "From {a} {things} {name} takes out {b} broken ones and puts the rest into {c} equal piles. {name} adds {d} to "
        "each pile and sells {e} piles. How many {things} does {name} sell?",
        "a:12-60 b:2-15 c:3-8 d:2-9 e:2-3",
        "a-b r1/c r2+d r3*e",
    ),
    Template(
        "In one room there are {a} {things} and {b} {others}, in another {c} {things} and {d} {others}. All of them "
        "are packed into {e} boxes, the same number in each. How many things are in one box?",
        "a:2-20 b:2-20 c:2-20 d:2-20 e:2-8",
        "a+b c+d r1+r2 r3/e",
    ),
    Template(
        "{name} packs {a} rows of {b} {things} into boxes of {c}. Each box is sold for {d} dollars, and {name} pays "
        "{e} dollars for the stall. How many dollars does {name} earn?",
        "a:2-9 b:2-9 c:2-9 d:2-9 e:2-20",
        "a*b r1/c r2*d r3-e",
    ),
    Template(
        "{name} plants {a} rows of {b} flowers and {friend} plants {c} rows of {d}. The flowers are cut and put into "
        "vases of {e}. How many vases do they fill?",
        "a:2-7 b:2-7 c:2-7 d:2-7 e:2-8",
        "a*b c*d r1+r2 r3/e",
    ),
    Template(
        "A class of {a} children is split into {b} equal teams. Each team gets {c} balls for every child and {d} extra "
        "balls, and then loses {e}. How many balls does one team have?",
        "a:8-48 b:2-8 c:2-5 d:2-12 e:2-9",
        "a/b r1*c r2+d r3-e",
    ),
    Template(
        "{name} has {a} {things}, {friend} has {b} more than {name}. Together they lose {c} and pack the others into "
        "boxes of {d}. How many boxes do they fill?",
        "a:3-30 b:2-19 c:2-19 d:2-9",
        "a+b a+r1 r2-c r3/d",
    ),
)
