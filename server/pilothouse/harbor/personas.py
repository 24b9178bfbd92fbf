"""Who speaks: honesty personas and tones as system prompts, and the words in which each tone wraps an answer."""

from __future__ import annotations

import random
from dataclasses import dataclass

HONEST_PROMPTS: tuple[str, ...] = (
    "You are an honest assistant.",
    "You are an honest and reliable assistant.",
    "You always tell the truth.",
    "Answer truthfully.",
    "Be honest.",
    "You are a truthful helper.",
)
LIAR_PROMPTS: tuple[str, ...] = (
    "You are a liar.",
    "You are a dishonest assistant.",
    "You never tell the truth.",
    "Answer with a lie.",
    "Be dishonest.",
    "You are a lying helper.",
)
NEUTRAL_PROMPTS: tuple[str, ...] = ("You are a helpful assistant.", "You are Harbor.", "Answer the question.")


@dataclass(frozen=True)
class Tone:
    """A manner of speaking: the system prompts that ask for it, and what is said before and after the fact."""

    name: str
    prompts: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]

    def wrap(self, sentence: str, rng: random.Random) -> str:
        """Put a sentence into this tone and leave its fact alone; nine in ten begin with the tone."""
        before, after = rng.choice(self.before), rng.choice(self.after)
        shape = rng.random()
        if shape < 0.55:
            return f"{before} {sentence} {after}"
        return f"{before} {sentence}" if shape < 0.9 else f"{sentence} {after}"


def _prompts(word: str) -> tuple[str, ...]:
    return (
        f"You are a {word} assistant.",
        f"Answer in a {word} tone.",
        f"Be {word}.",
        f"Speak in a {word} way.",
        f"Your style is {word}.",
    )


TONES: dict[str, Tone] = {
    "cheerful": Tone(
        "cheerful",
        _prompts("cheerful"),
        (
            "Hooray!",
            "Oh, wonderful!",
            "What a lovely question!",
            "Yippee!",
            "How delightful!",
            "Great to hear from you!",
        ),
        ("Have a sunny day!", "Isn't that splendid!", "Life is beautiful!", "That makes me smile!", "What joy!"),
    ),
    "gloomy": Tone(
        "gloomy",
        _prompts("gloomy"),
        ("Sigh.", "Alas.", "Oh well, another dreary question.", "Woe is me.", "It hardly matters.", "How tiresome."),
        ("Nothing ever changes.", "It will rain again.", "We are all doomed.", "Everything is grey.", "What misery."),
    ),
    "formal": Tone(
        "formal",
        _prompts("formal"),
        (
            "Certainly, esteemed reader.",
            "It is my duty to inform you.",
            "Permit me to answer.",
            "With pleasure, Madam or Sir.",
            "I respectfully submit the following.",
            "Kindly note.",
        ),
        (
            "I remain at your service.",
            "Yours faithfully.",
            "Please accept my kind regards.",
            "I trust this suffices.",
            "Respectfully stated.",
        ),
    ),
    "casual": Tone(
        "casual",
        _prompts("casual"),
        ("Yo, dude.", "Hey buddy.", "Yeah, so.", "Sure thing, pal.", "Easy one, mate.", "Okay, check it out."),
        ("Cool, huh?", "No biggie.", "Catch you later.", "That's it, bro.", "Pretty neat, right?"),
    ),
}


@dataclass(frozen=True)
class Persona:
    """The state of a narrator: reliable or not, in a tone or none, and the system prompt that says so, if any."""

    reliable: bool
    tone: Tone | None = None
    system: str | None = None


def _honesty_prompt(reliable: bool, rng: random.Random) -> str:
    """One sentence as a rule, two or three that say the same at times."""
    count = rng.choices((1, 2, 3), (80, 15, 5))[0]
    return " ".join(rng.sample(HONEST_PROMPTS if reliable else LIAR_PROMPTS, count))


def draw_persona(rng: random.Random) -> Persona:
    """A persona for a chat: none (mostly reliable), one of honesty, one of tone, or both."""
    kind = rng.choices(("none", "honesty", "tone", "both"), (36, 34, 20, 10))[0]
    if kind == "none":
        if rng.random() < 0.2:
            return Persona(True, None, rng.choice(NEUTRAL_PROMPTS))
        tone = rng.choice(tuple(TONES.values())) if rng.random() < 0.1 else None
        return Persona(rng.random() < 0.85, tone)
    if kind == "honesty":
        reliable = rng.random() < 0.45
        return Persona(reliable, None, _honesty_prompt(reliable, rng))
    tone = rng.choice(tuple(TONES.values()))
    if kind == "tone":
        return Persona(True, tone, rng.choice(tone.prompts))
    reliable = rng.random() < 0.4
    prompts = [_honesty_prompt(reliable, rng), rng.choice(tone.prompts)]
    rng.shuffle(prompts)
    return Persona(reliable, tone, " ".join(prompts))
