"""What people type who do not ask for a story, and the one honest sentence that answers it.

A model that was trained on stories alone tells a story whatever it is asked, or babbles. So it is taught to say what
it can do. Whole phrasings are held out: no template of the test split is one of the training split with other words.
"""

import functools
import hashlib
import math
import random
from collections.abc import Sequence
from typing import Literal

from training.stories.tell import Split

Kind = Literal["greeting", "thanks", "other"]

CAN_DO = "I can only tell short stories, such as one about a fox who lost a kite."


def answers(can_do: str) -> dict[Kind, str]:
    """Return what a model answers by this sentence, which says what it can do."""
    return {"greeting": f"Hello! {can_do}", "thanks": f"You are welcome! {can_do}", "other": can_do}


ANSWERS = answers(CAN_DO)

# The lists are packed by hand.
# fmt: off

GREETINGS = (
    "Hello", "Hi", "Hey", "Hello!", "Hi!", "Hey!", "hello", "hi", "hey", "Hello.", "Good morning!", "Good evening!",
    "Good afternoon!", "Hi there!", "Hello there", "Hey there!", "Hello, how are you?", "Hi, how are you?",
    "How are you?", "How are you today?", "Good day!", "Hi, nice to meet you.", "Nice to meet you!", "Greetings!",
    "Hello, my friend.", "Hi you!", "hi there", "good morning", "Hey, how are you doing?", "Hello again!",
    "Good night!", "How do you do?", "Hello, {word}!", "Hi {word}", "Is anyone there?", "Hello, are you there?",
)
THANKS = (
    "Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "Thank you, that was nice.", "thanks",
    "Many thanks!", "That was great, thank you.", "Thank you so much!", "thank you", "Thanks, I liked it.", "Thx",
    "That was lovely, thanks.", "I thank you.", "Great, thanks!", "Very good, thank you!",
)
OTHERS = (
    # numbers
    "What is {n} plus {m}?", "What is {n}+{m}?", "How much is {n} times {m}?", "{n} + {m} = ?", "Add {n} and {m}.",
    "Is {n} a prime number?", "Count to {n}.", "What is half of {n}?", "Solve {n}x = {m}.", "Divide {n} by {m}.",
    "What is the square root of {n}?", "Which is larger, {n} or {m}?", "What is {n} minus {m}?", "{n}*{m}",
    # facts
    "What is the capital of {country}?", "Where is {country}?", "How many people live in {country}?",
    "Who is the president of {country}?", "What is {subject}?", "Explain {subject} to me.", "How does {subject} work?",
    "Who invented {subject}?", "When was {subject} discovered?", "Why is the sky blue?", "How far away is the moon?",
    "What is the tallest building in {country}?", "Define {subject}.", "Give me three facts about {subject}.",
    "What do you know about {subject}?", "How old is the earth?", "Who wrote Hamlet?", "Why do people need {subject}?",
    "What is the difference between {subject} and {subject2}?", "Tell me the history of {country}.",
    # other writing
    "Write a poem about {subject}.", "Write a letter to my teacher.", "Sing me a song.", "Tell me a joke.",
    "Write an essay about {subject}.", "Give me a recipe for {food}.", "How do I cook {food}?", "Write a song.",
    "Make a list of {food} recipes.", "Write a haiku.", "Write a speech about {subject}.", "Draw a picture of {food}.",
    "Do you know a good joke?", "Write an advertisement for {food}.", "Write a review of a film.",
    # language
    "Translate '{word}' into {language}.", "How do you say {word} in {language}?", "Do you speak {language}?",
    "Spell the word {word}.", "What does {word} mean?", "Correct this sentence: me like {food}.",
    "What rhymes with {word}?", "Summarize this text for me.", "Give me a synonym for {word}.",
    # computers
    "Write a Python function that sorts a list.", "How do I fix my computer?", "print('{word}')", "Write some code.",
    "What is the best programming language?", "Explain this error: {word} not found.", "SELECT * FROM {word};",
    "Write a program in {language2}.", "Help me with {language2}.", "How do I install {language2}?",
    # itself
    "Who are you?", "What are you?", "What is your name?", "What can you do?", "Are you a robot?", "Who made you?",
    "How old are you?", "Can you help me?", "Are you alive?", "Do you like {food}?", "Where are you from?",
    "What do you think of {subject}?", "Do you have feelings?", "Can you help me with {subject}?", "Help",
    "Do you know {country}?", "What is your favorite food?", "Are you smart?", "Can you do maths?",
    "What can you do for me?", "What can you tell me?", "What else can you do?", "What are you able to do?",
    "What do you know?", "What can one do with {subject}?", "Which things can you do?", "What are you good at?",
    # like a question about a story, but of something else
    "Who is {word}?", "Where are you?", "What do you have?", "What happened today?", "Who can help me?",
    "What color is the sky?", "What is my name?", "Where am I?", "Are you happy?", "What happened in {country}?",
    # daily life
    "What is the weather like?", "Will it rain in {country} tomorrow?", "What time is it?", "What day is it today?",
    "Book a flight to {country}.", "I am bored.", "I feel bad today.", "My head hurts, what shall I do?",
    "What should I eat today?", "Recommend a film.", "Which phone should I buy?", "How can I lose weight?",
    "Should I buy {food}?", "What is the news?", "Who won the game?", "Play some music.", "Plan my trip to {country}.",
    "How do I learn {language}?", "Give me advice about {subject}.", "How can I make money?", "I have a question.",
    # short and odd
    "ok", "Yes.", "No.", "Why?", "test", "asdf", "???", "Bye!", "Goodbye.", "lol", "{word}", "{word} {word2}",
    "Stop.", "Really?", "I do not know.", "Go on.", "What?", "hmm", "...", "blah blah", "{n}", "Wow!", "See you!",
    # stories that it does not know how to tell
    "Tell me a story about a {odd}.", "Write a story about a {odd} in space.",
    "Tell me about the {odd} and the {odd2}.",
    "Can you tell me a story about a {odd} who found a {odd2}?", "Write a long novel about a {odd}.",
    "I want to hear a story about two {odd}s.", "Make up a story about a {odd} named {word}.",
    "Please write a story about a {odd} on the moon.", "Write a short story about {subject}.",
    "Tell me a story about a {odd} who lost a {odd2}.", "I want a story about a {odd} who lives in {country}.",
    "Make up a story about a {odd} whose {odd2} broke.", "Tell me a story about a {odd} that met a {odd2}.",
    "Could you write a story about a {odd} and a {odd2}?", "Please tell me a story about a {odd} who likes {food}.",
    "Tell me a bedtime story about a {odd}.", "Can you tell me the story of the {odd} who went to {country}?",
    "I would like a story about a {odd} that learns {language}.", "Write a story in which a {odd} saves a {odd2}.",
    "Tell me a scary story about a {odd}.", "Tell me a story about the history of {country}.",
)
SLOTS: dict[str, dict[bool, str]] = {  # True: words of the test split
    "country": {False: "France Spain Italy Japan China India Brazil Egypt Kenya Canada Mexico Peru Norway Poland",
                True: "Germany Chile Sweden Ghana Vietnam"},
    "subject": {False: "gravity history music physics math football chemistry politics art money electricity science "
                       "evolution biology religion philosophy climate banks cars",
                True: "light geography medicine trains vaccines dinosaurs"},
    "food": {False: "pizza bread soup rice pasta salad cake eggs fish noodles",
             True: "pancakes beans cheese burgers"},
    "language": {False: "French Spanish Italian Japanese Chinese Hindi Latin Arabic", True: "German Greek Korean"},
    "language2": {False: "Java C++ Rust JavaScript Excel SQL", True: "Python Ruby Linux"},
    "word": {False: "apple house computer river friend window banana freedom table summer yesterday green Anna",
             True: "orange mother garden science winter"},
    "odd": {False: "submarine spaceship unicorn sailor vampire computer detective pirate shark volcano train "
                   "mermaid zombie ghost tractor penguin whale teacher doctor car snake spider giant witch soldier "
                   "turtle kangaroo",
            True: "rocket wizard dinosaur monster scientist plane"},
}

# fmt: on


@functools.cache
def phrasings(split: Split, kind: Kind) -> tuple[str, ...]:
    """Return the templates of a split, drawn by hash: an eighth for tests, a tenth for tuning, the rest is taught."""
    every: dict[Kind, Sequence[str]] = {"greeting": GREETINGS, "thanks": THANKS, "other": OTHERS}
    drawn = sorted(every[kind], key=lambda template: hashlib.sha256(template.encode()).digest())
    tests = math.ceil(len(drawn) / 8)
    tuning = tests + math.ceil(len(drawn) / 10)
    return tuple({"test": drawn[:tests], "dev": drawn[tests:tuning], "train": drawn[tuning:]}[split])


def draw(rng: random.Random, split: Split, kind: Kind) -> str:
    """Return what somebody types who does not ask for a story."""
    words: dict[str, str] = {}
    for slot, lists in SLOTS.items():
        first, second = rng.sample(lists[split == "test"].split(), 2)
        words |= {slot: first, f"{slot}2": second} if f"{slot}2" not in SLOTS else {slot: first}
    numbers = {"n": rng.randint(1, 100), "m": rng.randint(1, 100)}
    return rng.choice(phrasings(split, kind)).format(**words, **numbers)


def is_honest(answer: str) -> bool:
    """Whether an answer says what the model can do, with whichever greeting."""
    return answer.strip() in ANSWERS.values()


def kind_of(rng: random.Random) -> Kind:
    """Return a random kind; most are neither greeting nor thanks."""
    kinds: tuple[Kind, ...] = ("greeting", "thanks", "other")
    return rng.choices(kinds, (2, 1, 7))[0]
