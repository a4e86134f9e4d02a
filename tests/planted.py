"""A corpus with known defects: clean English documents that share no sentence, and copies and spoilt ones among them.

The clean documents are drawn from a small grammar and some 300 words, so that they pass for English, share no run of
words that matters, and need no download.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import ftfy.bad_codecs  # noqa: F401  registers sloppy-windows-1252

NOUNS = (
    "harbour orchard lantern bridge market teacher river engine garden letter window captain mountain winter kitchen "
    "village doctor forest island library station painter blanket compass farmer ladder meadow mirror needle ocean "
    "palace pencil pillow planet pocket powder prison rabbit ribbon sailor saddle school shadow silver singer spider "
    "stream street summer tailor temple thread ticket timber tunnel turtle valley velvet violin wagon weaver whistle "
    "anchor basket beacon bottle branch bucket button candle carpet castle cellar cherry circle corner cotton cousin "
    "dragon drawer eagle feather fiddle flower fountain garlic goblet hammer helmet hunter jacket jewel journal kettle"
).split()
VERBS = (
    "carried followed painted repaired watched described measured promised remembered collected divided examined "
    "explained gathered imagined noticed ordered planted polished prepared protected received rescued returned "
    "searched sheltered studied visited wandered welcomed borrowed counted crossed defended delivered discovered"
).split()
ADJECTIVES = (
    "ancient bitter bright broken careful clever cloudy curious distant dusty eager early empty faithful famous "
    "fragile gentle golden hollow honest humble hungry jealous lonely marble modest narrow nervous patient peaceful "
    "pleasant polite proud quiet rapid rough silent simple sleepy slender smooth sturdy sudden tender tired wooden"
).split()
ARTICLES = ("the", "a", "his", "her", "their", "every", "this", "that", "our", "some", "one")
PREPOSITIONS = ("of", "with", "to", "from", "behind", "near", "under", "without", "before", "after", "beside", "into")
ACCENTED = ("café", "señor", "naïve", "forêt", "über", "château", "mañana", "Zoë", "déjà", "façade")
CONNECTORS = ("and", "but", "while", "because", "until", "although", "so", "when", "as", "for")
GERMAN = (
    "Der alte Lehrer ging am Abend langsam durch den Garten und dachte an {n} und an seine Kindheit.",
    "Niemand wusste, warum das Fenster offen stand, obwohl es draußen seit {n} geschneit hatte.",
    "Sie erzählte uns von der Reise nach {n}, auf der sie ihren Bruder zum letzten Mal gesehen hatte.",
    "Am nächsten Morgen war der Fluss über die Ufer getreten, und {n} stand unter Wasser.",
    "Wir haben lange über {n} gesprochen, ohne dass jemand eine gute Antwort gefunden hätte.",
    "Das Haus am Rand von {n} gehörte früher einem Maler, der nur im Winter arbeitete.",
)
FRENCH = (
    "Le vieux professeur traversait lentement le jardin en pensant à {n} et à toute son enfance.",
    "Personne ne savait pourquoi la fenêtre restait ouverte alors qu'il neigeait depuis {n}.",
    "Elle nous a raconté le voyage vers {n}, où elle avait vu son frère pour la dernière fois.",
    "Le lendemain matin, la rivière avait débordé et {n} se trouvait entièrement sous l'eau.",
    "Nous avons longtemps parlé de {n} sans que personne ne trouve une bonne réponse.",
    "La maison au bord de {n} appartenait autrefois à un peintre qui travaillait en hiver.",
)


@dataclass
class Planted:
    """The corpus: texts by id, the ids of each kind, and the questions of an evaluation that some documents leak."""

    texts: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, list[str]] = field(default_factory=dict)
    repaired: dict[str, str] = field(default_factory=dict)  # what broken encodings should become
    questions: list[dict[str, str]] = field(default_factory=list)

    def add(self, kind: str, text: str) -> str:
        """Add a document and return its id."""
        name = f"{kind}-{len(self.kinds.setdefault(kind, []))}"
        self.kinds[kind].append(name)
        self.texts[name] = text
        return name

    def write(self, path: Path, seed: int = 0) -> None:
        """Write the documents as JSON lines in random order."""
        names = list(self.texts)
        random.Random(seed).shuffle(names)
        path.write_text("".join(json.dumps({"id": name, "text": self.texts[name]}) + "\n" for name in names))


def phrase(rng: random.Random) -> str:
    """Return a noun with what belongs to it."""
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.6 else ""
    return f"{rng.choice(ARTICLES)} {adjective}{rng.choice(NOUNS)}"


def clause(rng: random.Random) -> str:
    """Return a clause in the past tense."""
    place = f" {rng.choice(PREPOSITIONS)} {phrase(rng)}" if rng.random() < 0.7 else ""
    return f"{phrase(rng)} {rng.choice(VERBS)} {phrase(rng)}{place}"


def sentence(rng: random.Random) -> str:
    """Return a sentence that is English by its words and never comes twice."""
    words = f"{clause(rng)} {rng.choice(CONNECTORS)} {clause(rng)}"
    return words[0].upper() + words[1:] + rng.choice("..........!?")


def foreign(rng: random.Random, templates: tuple[str, ...]) -> str:
    """Return a sentence of another language."""
    return rng.choice(templates).format(n=rng.choice(NOUNS).capitalize())


def paragraphs(sentences: list[str]) -> str:
    """Join sentences, five to a paragraph."""
    return "\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))


def plant(clean: int = 1000, each: int = 50, seed: int = 0) -> Planted:
    """Return a corpus of `clean` distinct documents and `each` documents of every kind of defect."""
    rng = random.Random(seed)
    corpus = Planted()
    documents = [[sentence(rng) for _ in range(20)] for _ in range(clean)]
    for document in documents:
        corpus.add("clean", paragraphs(document))
    for document in documents[:each]:
        corpus.add("copy-100", paragraphs(document))
    for share, kind in ((2, "copy-90"), (4, "copy-80")):  # sentences of 20 that are new, side by side
        for document in documents[each : 2 * each] if share == 2 else documents[2 * each : 3 * each]:
            at = rng.randrange(20 - share)
            changed = [*document[:at], *(sentence(rng) for _ in range(share)), *document[at + share :]]
            corpus.add(kind, paragraphs(changed))
    for number in range(each):
        menu = [f"Sign up for our newsletter number {number} today", "Home | About | Contact", "All rights reserved"]
        corpus.add("boilerplate", "\n".join(menu * 12))
        templates = GERMAN if number % 2 else FRENCH
        corpus.add("language", paragraphs([foreign(rng, templates) for _ in range(15)]))
        mail = f"{rng.choice(NOUNS)}.{rng.choice(NOUNS)}{number}@mail{number}.org"
        address = f"8.{rng.randrange(256)}.{rng.randrange(256)}.{number}"
        corpus.add("mail", paragraphs([sentence(rng) for _ in range(18)]) + f" Write to {mail} from {address}.")
        question = {"question": sentence(rng) + " " + sentence(rng), "answer": sentence(rng)}
        corpus.questions.append(question)
        leak = [sentence(rng) for _ in range(18)]
        leak[9] = f"{question['question'].upper()} {question['answer']}"
        corpus.add("leak", paragraphs(leak))
        right = paragraphs([f"“{sentence(rng)}” — {rng.choice(NOUNS)} {rng.choice(ACCENTED)}." for _ in range(10)])
        # As browsers and most programs read Windows-1252: every byte is some character.
        name = corpus.add("mojibake", right.encode().decode("sloppy-windows-1252"))
        corpus.repaired[name] = right
    return corpus
