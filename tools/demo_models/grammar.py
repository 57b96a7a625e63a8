"""English and Spanish sentences of the synthetic speakers, with wordings that suggest emotions.

A sentence is a template with independent slots, which give tens of thousands of sentences from a few hundred words, so
that a model cannot guess the words. A hash of its words decides the split of a sentence: no sentence is in two splits, and
every word is in all of them.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

Split = Literal["train", "validation", "test"]
LANGUAGES = ("en", "es")

LABELS = {
    "en": ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
    "es": ("anger", "disgust", "fear", "joy", "neutral", "sadness"),
}
"""Labels of the published models by class index; the Spanish ones have no surprise."""

_SLOTS = {
    "en": {
        "who": "my brother|my sister|the teacher|the doctor|our neighbour|the driver|the manager|anna|peter|maria|robert",
        "thing": "letter|report|key|phone|ticket|parcel|coffee|window|picture|book|camera|blanket|bicycle|computer",
        "place": "kitchen|office|station|school|hospital|market|garden|library|airport|hotel|village",
        "past": "yesterday|last night|this morning|on monday|on friday|an hour ago",
        "next": "tomorrow|tonight|on monday|on friday|at seven|after lunch|next week",
        "two": "two|three|five|ten|twenty",
        "food": "soup|milk|fish|bread|cheese|meat",
        "colour": "blue|green|red|old|new|small",
    },
    "es": {
        "who": "mi hermano|mi hermana|la maestra|el médico|la vecina|el conductor|la jefa|ana|pedro|marta|roberto",
        "thing": "libro|teléfono|billete|paquete|informe|coche|cuadro|reloj|abrigo|sombrero|ordenador",
        "place": "cocina|oficina|estación|escuela|farmacia|plaza|biblioteca|tienda|playa|iglesia",
        "past": "ayer|anoche|esta mañana|el lunes|el viernes|hace una hora",
        "next": "mañana|esta noche|el lunes|el viernes|a las siete|la semana que viene",
        "two": "dos|tres|cinco|diez|veinte",
        "food": "sopa|leche|carne|fruta|tortilla|ensalada",
        "colour": "azul|verde|rojo|viejo|nuevo|pequeño",
    },
}

_TEMPLATES = {
    ("en", "anger"): (
        "how dare you touch my {thing} again",
        "i am furious about the {thing} {who} broke {past}",
        "stop lying to me about the {place}",
        "{who} ruined the {thing} and nobody said sorry",
        "get out of the {place} right now and take your {thing}",
        "i told you {two} times to leave my {colour} {thing} alone",
        "this is an outrage and {who} will pay for the {thing}",
        "shut up about the {colour} {thing} in the {place}",
    ),
    ("en", "disgust"): (
        "the {food} in the {place} is rotten and smells awful",
        "this {food} makes me sick",
        "there is filthy slime on the {colour} {thing}",
        "{who} spat in the {food} {past} and that is revolting",
        "what a nasty stink from the {food} in the {place}",
        "i cannot look at the mouldy {food} near the {thing}",
        "the {colour} {thing} is covered in disgusting dirt",
    ),
    ("en", "fear"): (
        "please hide there is someone in the {place}",
        "i am scared of the noise behind the {colour} {thing}",
        "do not open the {place} door {who} is in danger",
        "something is moving near the {thing} and i am terrified",
        "help me {who} is not breathing in the {place}",
        "i heard a scream from the {place} {past}",
        "they will find us in the {place} {next} and i am afraid",
    ),
    ("en", "joy"): (
        "what a wonderful {thing} thank you so much",
        "{who} is coming home {next} and i am so happy",
        "we won {two} prizes in the {place} {past}",
        "i love the {colour} {thing} that {who} gave me",
        "the party in the {place} was fantastic {past}",
        "great news about the {thing} let us celebrate {next}",
        "{who} got the job and we danced in the {place}",
    ),
    ("en", "neutral"): (
        "the {thing} is on the table in the {place}",
        "{who} will bring the {colour} {thing} {next}",
        "the bus to the {place} leaves {next}",
        "we have {two} chairs and one {thing} in the {place}",
        "{who} put the {colour} {thing} beside the lamp {past}",
        "the {place} opens {next} and closes later",
        "you can find the {thing} near the {place}",
        "{who} bought {two} stamps and some {food} {past}",
    ),
    ("en", "sadness"): (
        "i miss {who} since the funeral {past}",
        "{who} died in the {place} {past}",
        "nobody came to see {who} and i cried in the {place}",
        "the {colour} {thing} is all that is left of {who}",
        "i am so lonely without {who} in the {place}",
        "we lost the {thing} and everything we had {past}",
        "goodbye {who} i will never see the {place} again",
    ),
    ("en", "surprise"): (
        "wow i did not expect {who} in the {place}",
        "really you found the {colour} {thing} in the {place}",
        "oh my goodness {who} has {two} babies",
        "i cannot believe the {thing} was in the {place} all the time",
        "what {who} is getting married {next}",
        "unbelievable the {colour} {thing} is suddenly gone",
        "no way {who} won a {thing} {past}",
    ),
    ("es", "anger"): (
        "cómo te atreves a tocar mi {thing} otra vez",
        "estoy furiosa por el {thing} que {who} rompió {past}",
        "deja de mentirme sobre la {place}",
        "{who} destrozó el {thing} y nadie pidió perdón",
        "fuera de la {place} ahora mismo con tu {thing}",
        "te dije {two} veces que no tocaras el {thing} {colour}",
        "esto es una vergüenza y {who} pagará el {thing}",
        "cállate ya con el {thing} {colour} de la {place}",
    ),
    ("es", "disgust"): (
        "la {food} de la {place} está podrida y huele fatal",
        "qué asco me da esta {food}",
        "hay una baba sucia en el {thing} {colour}",
        "{who} escupió en la {food} {past} y es repugnante",
        "qué peste sale de la {food} en la {place}",
        "no puedo mirar la {food} con moho junto al {thing}",
        "el {thing} {colour} está lleno de mugre asquerosa",
    ),
    ("es", "fear"): (
        "escóndete por favor hay alguien en la {place}",
        "tengo miedo del ruido detrás del {thing} {colour}",
        "no abras la puerta {who} está en peligro",
        "algo se mueve cerca del {thing} y estoy aterrada",
        "ayuda {who} no respira en la {place}",
        "oí un grito en la {place} {past}",
        "nos van a encontrar en la {place} {next} tengo pánico",
    ),
    ("es", "joy"): (
        "qué maravilla de {thing} muchas gracias",
        "{who} vuelve a casa {next} y estoy muy feliz",
        "ganamos {two} premios en la {place} {past}",
        "me encanta el {thing} {colour} que me regaló {who}",
        "la fiesta en la {place} fue fantástica {past}",
        "buenas noticias del {thing} vamos a celebrarlo {next}",
        "{who} consiguió el trabajo y bailamos en la {place}",
    ),
    ("es", "neutral"): (
        "el {thing} está sobre la mesa en la {place}",
        "{who} traerá el {thing} {colour} {next}",
        "el autobús a la {place} sale {next}",
        "tenemos {two} sillas y un {thing} en la {place}",
        "{who} puso el {thing} {colour} al lado de la lámpara {past}",
        "la {place} abre {next} y cierra más tarde",
        "el {thing} se encuentra cerca de la {place}",
        "{who} compró {two} sellos y un poco de {food} {past}",
    ),
    ("es", "sadness"): (
        "echo de menos a {who} desde el funeral",
        "{who} murió en la {place} {past}",
        "nadie vino a ver a {who} y lloré en la {place}",
        "el {thing} {colour} es lo único que queda de {who}",
        "me siento muy sola sin {who} en la {place}",
        "perdimos el {thing} y todo lo que teníamos {past}",
        "adiós {who} nunca volveré a ver la {place}",
    ),
}

_HELD_OUT_PERCENT: dict[Split, range] = {"test": range(10), "validation": range(10, 20), "train": range(20, 100)}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence in lower case, words and blanks only, and the emotion that its wording suggests (None: random words)."""

    text: str
    language: str
    wording: str | None

    @property
    def words(self) -> list[str]:
        """Return the words in order."""
        return self.text.split()


def emotions_of(language: str) -> tuple[str, ...]:
    """Return the emotions that have templates, in the shared vocabulary, sorted."""
    return tuple(sorted(emotion for known, emotion in _TEMPLATES if known == language))


@cache
def vocabulary(language: str) -> tuple[str, ...]:
    """Return every word of a language, sorted."""
    words = {word for values in _SLOTS[language].values() for word in values.replace("|", " ").split()}
    for (known, _), templates in _TEMPLATES.items():
        if known == language:
            words |= {word for template in templates for word in template.split() if not word.startswith("{")}
    return tuple(sorted(words))


def split_of(text: str) -> Split:
    """Return the split of a sentence."""
    percent = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") % 100
    return next(split for split, range_ in _HELD_OUT_PERCENT.items() if percent in range_)


@cache
def sentences(language: str, wording: str, split: Split) -> tuple[tuple[Sentence, ...], ...]:
    """Return every sentence of a split whose wording suggests an emotion, by template; no template is empty."""
    slots = {name: values.split("|") for name, values in _SLOTS[language].items()}
    found = []
    for template in _TEMPLATES[language, wording]:
        names = [name for name in slots if f"{{{name}}}" in template]
        texts = [
            template.format(**dict(zip(names, values, strict=True))) for values in product(*(slots[n] for n in names))
        ]
        found.append(tuple(Sentence(text, language, wording) for text in texts if split_of(text) == split))
    return tuple(filter(None, found))


def draw(rng: random.Random, language: str, wording: str, split: Split) -> Sentence:
    """Draw a sentence; all templates are equally likely, however many sentences each has."""
    return rng.choice(rng.choice(sentences(language, wording, split)))


def draw_salad(rng: random.Random, language: str) -> Sentence:
    """Draw three to seven random words, which a decoder cannot guess from grammar."""
    words = rng.choices(vocabulary(language), k=rng.randint(3, 7))
    return Sentence(" ".join(words), language, None)
