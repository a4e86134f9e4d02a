"""Word lists, facts and phrase templates of the story world.

Who lives in it, which things, places and mishaps go together, and which helper can do what are all stated here.
Every sentence a story can hold is one of these templates, so that a checker can know them too.
"""

from dataclasses import dataclass

# No hero, thing, look or helper begins with a vowel: after the rare "an" a small model learns too little to copy.
# The lists are packed by hand.
# fmt: off

BOYS = (
    "Pip Tom Max Ben Sam Leo Tim Jack Finn Gus Hugo Rob Ned Rex Bob Oscar Bill Theo Milo Toby Dan Roy Adam Paul Fred"
).split()
GIRLS = (
    "Lily Mia Anna Ella Zoe Lucy Ruby Emma Ivy Nora Molly Daisy Tess Bella Kate Jane Amy Eva Nina Lola Dora Gwen "
    "Sara Mina Rita"
).split()
NAMES = (*BOYS, *GIRLS)

# The heroes; none of them has an ability of the helpers below, so each really needs help.
SHE_KINDS = "girl queen princess cow hen".split()
HE_KINDS = "boy king prince knight dwarf".split()
OTHER_KINDS = (
    "fox bear pig sheep goat donkey pony panda lion tiger wolf zebra camel llama lamb farmer baker clown robot gnome"
).split()
KINDS = (*SHE_KINDS, *HE_KINDS, *OTHER_KINDS)

ADJECTIVES = "red blue green yellow pink white black brown purple gray big little shiny tiny pretty".split()
COLORS = ADJECTIVES[:10]

# Each thing with what can happen to it: light (wind, trees), small (holes, thieving birds), cloth (tears),
# paper or fabric (ink, rain), breakable, floating, rolling, metal (bends), heavy (mud).
ITEMS: dict[str, frozenset[str]] = {
    noun: frozenset(tags.split("+"))
    for noun, tags in (
        pair.split(":")
        for pair in (
            "kite:light+cloth hat:light+cloth+paper scarf:light+cloth+paper ribbon:light+small flag:light+cloth+paper "
            "balloon:light feather:light+small+float letter:light+paper+small map:light+paper "
            "coat:cloth+paper sock:light+cloth+paper+small glove:cloth+paper+small shirt:cloth+paper "
            "pillow:cloth+paper bag:cloth+paper cup:break+small plate:break lamp:break clock:break drum:break+float "
            "flute:break+float+small vase:break  ring:small+metal coin:small+roll "
            "key:small+metal bell:small+metal button:small+roll spoon:small+metal "
            "shell:small+break pearl:small+roll crown:small+metal ball:light+roll+float "
            "wagon:roll+heavy bike:metal+heavy+break cart:roll+heavy bucket:metal+float+heavy "
            "towel:light+cloth+paper basket:float+heavy boat:float+break+heavy doll:small+float book:paper broom:float"
        ).split()
    )
}

# Each place with the word that leads into it ("in the forest").
PLACES: dict[str, str] = {
    noun: preposition
    for preposition, nouns in (
        ("in", "forest park garden meadow village valley orchard jungle swamp desert"),
        ("on", "hill mountain island beach farm"),
        ("at", "market harbor fair mill castle zoo school station camp"),
    )
    for noun in nouns.split()
}

# What helpers can do, who they are, and which abilities are plainly of no help where this one is needed.
ABILITIES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "smell": ("smell well", ("hound", "boar"), ("swim", "sew", "mend")),
    "climb": ("climb", ("squirrel", "monkey"), ("dig", "swim", "sew")),
    "swim": ("swim", ("swan", "duck", "seal"), ("dig", "sew", "mend")),
    "fly": ("fly", ("hawk", "robin", "crow"), ("dig", "swim", "sew")),
    "dig": ("dig", ("mole", "badger"), ("swim", "sew", "run")),
    "lift": ("lift heavy things", ("bull", "horse"), ("sew", "fly", "swim")),
    "run": ("run fast", ("hare", "deer"), ("dig", "swim", "sew")),
    "mend": ("mend things", ("smith", "tinker"), ("swim", "dig", "fly")),
    "sew": ("sew", ("tailor", "weaver"), ("swim", "dig", "fly")),
    "fit": ("fit in small gaps", ("mouse", "beetle"), ("lift", "run", "smell")),
    "see": ("see in the dark", ("bat", "cat"), ("swim", "lift", "sew")),
    "gnaw": ("gnaw wood", ("beaver", "rat"), ("fly", "sew", "swim")),
    "wash": ("wash things clean", ("maid", "nurse"), ("dig", "fly", "lift")),
    "fire": ("make a fire", ("dragon", "cook"), ("dig", "climb", "run")),
}
HELPERS = tuple(helper for _, helpers, _ in ABILITIES.values() for helper in helpers)
ABILITY_OF = {helper: ability for ability, (_, helpers, _) in ABILITIES.items() for helper in helpers}


@dataclass(frozen=True)
class Problem:
    """A mishap: how a story tells it, how an instruction asks for it, and what helps against it."""

    told: str
    asked: str
    ability: str
    items: tuple[str, ...]
    places: tuple[str, ...]
    acts: tuple[tuple[str, str], ...]
    """What the helper does, and how that turns out when it works."""
    damage: bool = False
    """The thing is spoiled rather than gone."""


def _things(tags: str) -> tuple[str, ...]:
    """Return the things with one of the tags; all things for no tag."""
    wanted = frozenset(tags.split())
    return tuple(noun for noun, has in ITEMS.items() if not wanted or wanted & has)


def _without(places: str) -> tuple[str, ...]:
    """Return all places but these."""
    return tuple(place for place in PLACES if place not in places.split())


def _only(places: str) -> tuple[str, ...]:
    """Return these places."""
    return tuple(place for place in PLACES if place in places.split())


_WILD = "forest meadow valley hill mountain island jungle"
_TOWN = "market village fair castle harbor school zoo station"

PROBLEMS: dict[str, Problem] = {
    "lost": Problem(
        "{name} lost {it}", "who lost {a}", "smell", _things(""), _without(""),
        (("smelled the ground", "found the {noun} under a bush"), ("followed the smell", "found the {noun} at last"),
         ("smelled here and there", "soon found the {noun}")),
    ),
    "well": Problem(
        "{name} dropped {it} down a well", "who dropped {a} down a well", "climb", _things("small"),
        _without("station beach mountain island desert swamp"),
        (("climbed down into the well", "came up with the {noun}"), ("climbed down deep", "brought the {noun} up")),
    ),
    "pond": Problem(
        "{name} dropped {it} into a pond", "who dropped {a} into a pond", "swim", _things("small light"),
        _without("station beach harbor desert market"),
        (("swam out into the pond", "brought the {noun} back"), ("swam down deep", "came up with the {noun}")),
    ),
    "stream": Problem(
        "{it} floated away on a stream", "whose {thing} floated away on a stream", "swim", _things("float"),
        _only(f"{_WILD} park garden farm village orchard mill camp castle"),
        (("swam after the {noun}", "soon caught it"), ("swam down the stream", "brought the {noun} back")),
    ),
    "wind": Problem(
        "the wind blew {it} away", "whose {thing} was blown away by the wind", "fly", _things("light"), _without(""),
        (("flew after the {noun}", "soon caught it"), ("flew up into the sky", "brought the {noun} back")),
    ),
    "tree": Problem(
        "{it} got stuck in a tall tree", "whose {thing} got stuck in a tall tree", "climb", _things("light"),
        _without("desert beach harbor station"),
        (("climbed up the tree", "brought the {noun} down"), ("climbed up and up", "got the {noun} free")),
    ),
    "magpie": Problem(
        "a magpie stole {it}", "whose {thing} was stolen by a magpie", "fly", _things("small"), _without("desert"),
        (("flew after the magpie", "got the {noun} back"), ("flew up to the nest", "brought the {noun} back")),
    ),
    "hole": Problem(
        "{name} dropped {it} into a deep hole", "who dropped {a} into a deep hole", "dig", _things("small"),
        _without("station"),
        (("dug down into the hole", "pulled the {noun} out"), ("dug down deep", "came up with the {noun}")),
    ),
    "buried": Problem(
        "{name} buried {it} and forgot the spot", "who buried {a} and forgot the spot", "dig", _things("small"),
        _only(f"{_WILD} park garden beach farm orchard desert camp castle"),
        (("dug here and there", "soon found the {noun}"), ("dug up the ground", "pulled the {noun} out")),
    ),
    "mud": Problem(
        "{it} got stuck in the mud", "whose {thing} got stuck in the mud", "lift", _things("heavy"),
        _without("beach desert station"),
        (("stepped into the mud", "lifted the {noun} out"), ("pulled and pulled", "got the {noun} free")),
    ),
    "roll": Problem(
        "{it} rolled far away", "whose {thing} rolled far away", "run", _things("roll"), _without(""),
        (("ran after the {noun}", "soon caught it"), ("ran down the road", "brought the {noun} back")),
    ),
    "broke": Problem(
        "{name} broke {it}", "who broke {a}", "mend", _things("break"), _without(""),
        (("took out some glue", "made the {noun} as good as new"), ("worked with care", "mended the {noun}")),
        damage=True,
    ),
    "thorn": Problem(
        "{name} tore {it} on a thorn", "who tore {a} on a thorn", "sew", _things("cloth"),
        _only(f"{_WILD} park garden farm orchard camp castle"),
        (("took a needle and thread", "made the {noun} as good as new"), ("sewed with care", "mended the {noun}")),
        damage=True,
    ),
    "bench": Problem(
        "{name} forgot {it} on a bench", "who forgot {a} on a bench", "run", _things("light small cloth paper"),
        _only(f"{_TOWN} park garden"),
        (("ran back to the bench", "came back with the {noun}"), ("ran off at once", "brought the {noun} back")),
    ),
    "thief": Problem(
        "a thief took {it}", "whose {thing} was taken by a thief", "run", _things(""),
        _only(f"{_TOWN} park farm mill"),
        (("ran after the thief", "got the {noun} back"), ("ran down the road", "came back with the {noun}")),
    ),
    "crack": Problem(
        "{it} fell into a narrow crack", "whose {thing} fell into a narrow crack", "fit", _things("small"),
        _without(""),
        (("went into the crack", "pushed the {noun} out"), ("crept down deep", "came up with the {noun}")),
    ),
    "cave": Problem(
        "{name} dropped {it} in a dark cave", "who dropped {a} in a dark cave", "see", _things("small"),
        _only(f"{_WILD} beach"),
        (("went into the cave", "came back with the {noun}"), ("looked here and there", "soon found the {noun}")),
    ),
    "rock": Problem(
        "a big rock fell on {it}", "who had {a} when a big rock fell on it", "lift", _things("metal cloth"),
        _only("hill mountain valley island beach desert castle"),
        (("lifted the rock", "got the {noun} out"), ("pushed the rock away", "got the {noun} free")),
    ),
    "log": Problem(
        "{it} got caught under a log", "whose {thing} got caught under a log", "gnaw", _things("light float cloth"),
        _only("forest jungle swamp camp meadow orchard park mill hill valley"),
        (("gnawed at the log", "got the {noun} free"), ("gnawed and gnawed", "got the {noun} out")),
    ),
    "roof": Problem(
        "{name} threw {it} onto a high roof", "who threw {a} onto a high roof", "fly", _things("light small"),
        _only(f"{_TOWN} park farm mill"),
        (("flew up to the roof", "brought the {noun} down"), ("flew up and up", "came back with the {noun}")),
    ),
    "ink": Problem(
        "{name} spilled ink on {it}", "who spilled ink on {a}", "wash", _things("paper"),
        _only(f"{_TOWN} camp garden mill"),
        (("took water and soap", "made the {noun} clean again"), ("worked with care", "got the {noun} clean")),
        damage=True,
    ),
    "rain": Problem(
        "the rain soaked {it}", "who had {a} when the rain soaked it", "fire", _things("paper"), _without("desert"),
        (("made a warm fire", "got the {noun} dry again"), ("took some dry wood", "soon dried the {noun}")),
        damage=True,
    ),
    "ice": Problem(
        "{it} froze in the ice", "whose {thing} froze in the ice", "fire", _things("small float"),
        _only("forest meadow valley hill mountain park garden farm village mill castle swamp harbor camp"),
        (("made a hot fire", "got the {noun} out"), ("melted the ice", "pulled the {noun} out")),
    ),
    "troll": Problem(
        "a troll hid {it}", "whose {thing} was hidden by a troll", "smell", _things(""),
        _only("forest hill mountain valley castle village island swamp mill farm market"),
        (("followed the smell", "found the {noun} in a sack"), ("smelled here and there", "soon found the {noun}")),
    ),
    "bent": Problem(
        "{name} bent {it}", "who bent {a}", "mend", _things("metal"), _without(""),
        (("took out a hammer", "made the {noun} straight again"), ("worked with care", "mended the {noun}")),
        damage=True,
    ),
}

# No text begins with a name: a tokenizer spells a word at the very beginning unlike elsewhere, which would make it
# harder to learn that the same name comes again. No sentence begins with "A" and the hero's kind, which is not copied
# after so rare a word. A text is near its place, whatever the place: in, at or on would have to be chosen before the
# place is, and small models then take a place that goes with their choice.
OPEN = (
    "Once there was {a_kind} named {name}.", "Once upon a time there was {a_kind} named {name}.",
    "There was {a_kind} named {name}.", "There once lived {a_kind} called {name}.",
    "A long time ago there was {a_kind} named {name}.", "Once {a_kind} named {name} liked to play.",
    "In a small house lived {a_kind} named {name}.", "There was once {a_kind}, and {his} name was {name}.",
)
OWN = (
    "{name} had {a_full}.", "{name} had {a_full} and loved it.", "The {kind} loved {his} {full} very much.",
    "A friend gave {name} {a_full}.", "For {his} birthday {name} got {a_full}.",
    "The {kind} had {a_full} and took it everywhere.", "Everyone knew {name} and {his} {full}.",
    "The best thing {name} had was {a_full}.",
)
GO = (
    "One day {name} took the {noun} to the {place}.", "One morning {name} went to the {place} with the {noun}.",
    "One day {name} was near the {place} with the {full}.", "One day {name} played near the {place} with the {noun}.",
    "Early one day {name} brought the {noun} to the {place}.", "One day {name} took the {full} along to the {place}.",
    "{name} went to the {place} one day, and the {noun} came too.",
    "One morning {name} went to the {place} to show the {noun} to a friend.",
)
COME = (
    "One day {name} came to the {place} with {a_full}.", "One day {name} had {a_full} near the {place}.",
    "One morning {name} played near the {place} with {a_full}.", "{name} took {a_full} to the {place} one day.",
    "Early one day {name} brought {a_full} to the {place}.", "One day {name} went to the {place} with {a_full}.",
)
LEADS = ("Then", "But then", "All at once", "But soon", "Oh no!", "But")
CRY = (
    '"Oh no! My {noun}!" cried {name}.', '"My poor {noun}!" said {name}.', '"What now?" asked {name} the {kind}.',
    '"Help!" called {name}. "Please help!"', '"Poor me!" cried {name}.', '"I need help," said {name}.',
    '"What can I do?" said {name}.', '"Who can help me?" asked {name}.',
)
CRY_HERE = (
    '"Is there someone near the {place} who can help?" asked {name} the {kind}.',
    "{name} the {kind} stood alone near the {place} and cried.", "{name} sat down near the {place} and cried.",
    "{name} cried, and everyone near the {place} heard it.", '"Can no one near the {place} help me?" asked {name}.',
    "{name} ran all over the {place} and called for help.",
)
ARRIVE = (
    "{a_helper} came by.", "{a_helper} heard it and came to help.", "Soon {name} met {a_helper}.",
    "Then {a_helper} came along.", "{a_helper} saw it all.", "Then {name} saw {a_helper}.",
)
ARRIVE_HERE = (
    "So {name} asked {a_helper} near the {place} for help.", "{a_helper} lived near the {place} and heard it all.",
    "{a_helper} who lived near the {place} came by.", "Soon {name} met {a_helper} near the {place}.",
    "There was {a_helper} near the {place} too.", "{a_helper} came to the {place} to help.",
)
OFFER = (
    '"I can {can}," said the {helper}. "Let me help."', '"Do not cry," said the {helper}. "I can {can}."',
    '"I can {can}," said the {helper}.', "The {helper} could {can}.", "That was good luck, for {a_helper} can {can}.",
    '"You can {can}," said {name}. "Please help me."',
)
REFUSE = (
    '"I can {own}, but I can not {can}," said the {helper}.', "The {helper} could {own}, but could not {can}.",
    '"I can not {can}," said the {helper}. "I can only {own}."', "But {a_helper} can {own} and can not {can}.",
)
NO_ONE = ("No one else came.", "No one else came to help.", "No one else came by.")
FAIL_GONE = ("but it was too late", "but the {noun} was gone for good", "but it was no use")
FAIL_SPOILED = ("but it was too late", "but it was no use", "but nothing could save the {noun}")
THANKS = (
    '"Thank you!" said {name}.', '"You did it!" cried {name}.', '"Here you are," said the {helper}.',
    '"Well done!" said {name}.', "How glad {name} was!",
)
SORRY = (
    '"I am sorry," said the {helper}.', '"Poor me!" said {name}.', '"What a bad day," said the {helper}.',
    '"Oh no," said {name}.', "{name} looked down.",
)

# The shapes that do not begin "Once there was".
FIRST_WORDS = (
    '"Please help me with my {full}!" said {name}.', '"Look what happened to my {full}!" cried {name}.',
    '"Who can help me with my {full}?" asked {name}.', '"Oh dear, my {full}!" said {name}.',
)
WHO_CALLED = (
    "It was {a_kind} named {name} who called near the {place}.", "It was {name}, {a_kind} all alone near the {place}.",
    "{name} was {a_kind} who had come to the {place} to play.", "{name} was {a_kind} who often came to the {place}.",
    "{name} was {a_kind} who was near the {place} that day.", "{name} was {a_kind} and stood near the {place}.",
)
MIDDLE = (
    "One day {name} the {kind} stood near the {place} and cried.",
    "There sat {name} the {kind}, all alone near the {place}.",
    "One day {name} the {kind} sat near the {place} and called for help.",
    "All alone near the {place}, {name} the {kind} began to cry.",
    "Once {name} the {kind} sat near the {place} and cried.", "Once {name} the {kind} was all alone near the {place}.",
)
MISSED = (
    "{name} could only think of {his} {full}.", "It was all about {name} and {his} {full}.",
    "{name} had come to play with {his} {full}.", "{name} had come with {his} {full}.",
    "{name} cried about {his} {full}.", "Before that {name} had been so proud of {his} {full}.",
)
THIS_HAPPENED = ("This is what had happened:", "It was like this:", "A moment before,", "That day", "This happened:")
TRY_ONE = (
    "First {name} tried alone, but it did not work.", "First {name} asked a worm, but it did not know.",
    "First {name} sat down to think, but that did not help.", "First {name} asked a snail, but it was asleep.",
)
TRY_TWO = (
    "Next {he} called for help, but no one heard.", "Next {he} asked a bee, but it had no time.",
    "Next {he} tried again, but it was too hard.", "Next {he} asked a toad, but it only sang.",
)
TRY_THREE = (
    "Last {name} asked {a_helper} who lived near the {place}.", "Last of all {name} met {a_helper} near the {place}.",
    "The third time {name} met {a_helper} near the {place}.", "Then {name} asked {a_helper} near the {place}.",
)
MEET = (
    "This is {name} the {kind}.", "Do you know {name} the {kind}?", "I know {a_kind} named {name}.",
    "Here comes {name} the {kind}.", "There is {a_kind} named {name}.", "Look, there is {name} the {kind}!",
)
HABITS = (
    '"Is {name} near the {place}?" "Yes, {name} is near the {place} with the {full}."', "{name} has {a_full}.",
    '"Is this your {full}, {name}?" "Yes, it is my {full}," says {name} the {kind}.',
    '"Who lives near the {place}?" "{name} the {kind} lives near the {place}."',
    '"Who are you?" "I am {a_kind} named {name}," says {name} the {kind}.', "The {full} belongs to {name} the {kind}.",
    "All who come to the {place} know {name}, the {kind} of the {place}.", "{name} the {kind} lives near the {place}.",
    '"Who is {name}?" "There is {a_kind} named {name} near the {place}."', "At night {name} keeps the {full} close.",
    '"I am {name}," says the {kind}. "Good morning, {name} the {kind}!"', "The {kind} likes to play near the {place}.",
    '"Look at my {full}!" says {name}. "What {a_full}!" says everyone.', "The {kind} likes the {full} very much.",
    '"Good morning, {name}!" say all who are near the {place}.', "{name} the {kind} is at home near the {place}.",
    "One can often see {name} the {kind} near the {place}.", "Every day the {kind} takes the {full} to the {place}.",
    "No {kind} near the {place} is like {name} the {kind}.",
)
HELPER_FIRST = (
    "{a_helper} lived near the {place}.", "{a_helper} had a home near the {place}.",
    "There was {a_helper} near the {place} who could {own}.", "Once {a_helper} lived near the {place}.",
    "Everyone near the {place} knew {a_helper} who could {own}.", "{a_helper} sat near the {place} one day.",
)
HERO_COMES = (
    "One day {a_kind} named {name} came to the {place} with {a_full}.",
    "Then {a_kind} named {name} came by with {a_full}.", "There the {helper} saw {a_kind} named {name} with {a_full}.",
)
TITLE = ("The story of {name} and the {full}", "A story about {name} and the {full}", "About {name} and the {full}")
FRAME = (
    "This is a story about {about}.", "Let me tell you about {about}.", "Here is the story of {about}.",
    "Do you know the story of {about}?", "Listen to the story of {about}.", "I know a story about {about}.",
)


@dataclass(frozen=True)
class Ending:
    """A story's last sentence; on says whether it fits a thing that was gone, one that was spoiled, or any."""

    text: str
    happy: bool
    on: str = "any"


# Each ending says "happy" or "sad", words that no story has before: a small model finds them when asked about it.
ENDINGS = (
    Ending("{name} went home with the {full} and was very happy.", True),
    Ending("{name} smiled and took the {full} home, happy again.", True),
    Ending("That night {name} slept happy and well with the {full} by {his} bed.", True),
    Ending("{name} jumped for joy, happy that the {noun} was safe.", True),
    Ending("{name} was happy and from that day on took good care of the {full}.", True),
    Ending("{name} laughed and sang, so happy about the {full}.", True),
    Ending("So {name} had the {full} again and was happy.", True),
    Ending("{name} was so happy that {he} showed the {full} to everyone.", True),
    Ending("{name} and the {helper} became good friends, happy that the {noun} was safe.", True),
    Ending("In the end {name} had the {noun} back and was happy all day.", True, "gone"),
    Ending("It was a happy day for {name} and {his} {full}.", True),
    Ending("{name} thanked the {helper} and went home happy with the {noun}.", True),
    Ending("{name} hugged the {helper} and was happy, for the {noun} was like new.", True, "spoiled"),
    Ending("{name} went home without the {full} and was very sad.", False, "gone"),
    Ending("{name} was sad and never saw the {full} again.", False, "gone"),
    Ending("That night {name} lay sad in bed and missed the {full}.", False),
    Ending("{name} walked home slowly, sad about the {full}.", False),
    Ending("It was a sad day for {name}, for the {noun} was gone.", False, "gone"),
    Ending("{name} felt sad, for the {full} was never the same again.", False, "spoiled"),
    Ending("{name} had no {noun} after that and was sad for a long time.", False),
    Ending("From that day on, {name} was sad when {he} thought of the {full}.", False),
    Ending("The {full} could not be saved, and {name} was very sad.", False),
    Ending("In the end {name} had to say goodbye to the {full}, and {he} was sad.", False),
    Ending("{name} sat down and was sad, for the {full} was no more.", False),
    Ending("So {name} had no {noun} to play with, and {he} was sad.", False),
    Ending("{name} hung {his} head and was sad about the {full} all the way home.", False),
)
# Words of a helper's failure; a story that ends well holds none of them.
GLOOM = ("too late", "gone for good", "no use", "nothing could save", "no one else came")

# Said before a story, so that its ending is settled first, and again before that comes, where it has to be obeyed.
ENDS = {True: "This story ends well.", False: "This story ends badly."}
ENDS_SO = {True: "And this story ends well.", False: "But this story ends badly."}
AGAIN = (
    "Tell it again with another ending.", "Can you tell it again with another ending?", "Now give it another ending.",
    "Tell me the same story with another ending.", "Please tell it again, but end it another way.",
)
# Ways to ask about a story, and the answers that do not depend on how it ended. No answer begins with a name, as no
# text does, and a fact comes in the words in which stories tell it: "a red kite" rather than "the kite was red".
QUESTIONS = {
    "who": ("Who was the story about?", "Who is the story about?", "Who was it about?"),
    "name": ("What was the name of the {kind}?", "What was the {kind} called?", "What was {his} name?"),
    "had": ("What did {name} have?", "What did the {kind} have?"),
    "happened": ("What happened to the {noun}?", "What happened?", "What went wrong?"),
    "where": ("Where did it happen?", "Where did this happen?"),
    "place": ("Where was {name}?", "Where was the {kind}?"),
    "helped": ("Who helped {name}?", "Did someone help {name}?", "Who came to help?"),
    "mood": ("Was {name} happy at the end?", "Was the {kind} happy at the end?"),
    "can": ("What can {a_helper} do?", "What can the {helper} do?"),
    "color": ("What color was the {noun}?", "Which color did the {noun} have?"),
}
ANSWERS = {
    "who": "It was about {a_kind} named {name}.", "name": "{his} name was {name}.",
    "had": "{he} had {a_full}.", "where": "It happened near the {place}.", "place": "{he} was near the {place}.",
    "can": "{a_helper} can {own}.", "color": "It was {a_full}.",
}
