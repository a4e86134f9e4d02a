"""What the guide adds to Sphinx: quizzes, checked names, and mathematics that a browser draws without any script."""

from pathlib import Path
from typing import Any

import latex2mathml.converter
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from docs.names import problem_of, split_measured

QUIZZES = Path(__file__).parent / "quiz"


class details(nodes.General, nodes.Element):
    """What is shown when its summary is clicked."""


class summary(nodes.General, nodes.TextElement):
    """The line of a `details` that is always shown."""


def load_quiz(name: str) -> list[dict[str, Any]]:
    """Return the questions of a chapter: `question`, and `options` of `text`, `why` and, for one of them, `right`."""
    return yaml.safe_load((QUIZZES / f"{name}.yaml").read_text(encoding="utf-8"))


class QuizDirective(SphinxDirective):
    """The questions of one chapter. In HTML each option opens to its explanation; on paper they stand at the end."""

    required_arguments = 1

    @property
    def on_paper(self) -> bool:
        """Whether nothing can be clicked."""
        return "pdf" in self.env.app.tags

    def run(self) -> list[nodes.Node]:
        """Return the questions."""
        name = self.arguments[0]
        self.env.note_dependency(str(QUIZZES / f"{name}.yaml"))
        if self.on_paper and self.env.docname != "quiz" and type(self) is QuizDirective:
            return self.parse_text_to_nodes("The five questions to this chapter are in *Quiz*, at the end.")
        items = [self.item(entry) for entry in load_quiz(name)]
        return [nodes.container("", nodes.enumerated_list("", *items), classes=["quiz"])]

    def item(self, entry: dict[str, Any]) -> nodes.list_item:
        """Return a question with its options."""
        question = self.parse_text_to_nodes(entry["question"])
        if self.on_paper:
            options = [nodes.list_item("", *self.parse_text_to_nodes(option["text"])) for option in entry["options"]]
            return nodes.list_item("", *question, nodes.enumerated_list("", *options, enumtype="loweralpha"))
        item = nodes.list_item("", *question)
        for option in entry["options"]:
            (line,) = self.parse_text_to_nodes(option["text"])
            verdict = "**Right.**" if option.get("right") else "**No.**"
            why = self.parse_text_to_nodes(f"{verdict} {option['why']}")
            item += details("", summary("", "", *line.children), *why)
        return item


class AnswersDirective(QuizDirective):
    """The answers to the questions of one chapter: the right letter, and why each option is right or wrong."""

    def item(self, entry: dict[str, Any]) -> nodes.list_item:
        """Return the answer to a question."""
        options = entry["options"]
        right = "abcdef"[[bool(option.get("right")) for option in options].index(True)]
        whys = (f"({'abcdef'[i]}) {option['why']}" for i, option in enumerate(options))
        return nodes.list_item("", *self.parse_text_to_nodes(f"**{right}.** " + " ".join(whys)))


class NameRole(SphinxRole):
    """A name that must be there; see docs/names.py."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the name as it is shown; a name that is not there is an error of the build."""
        if problem := problem_of(self.name, self.text):
            message = self.inliner.reporter.error(problem, line=self.lineno)
            return [nodes.problematic(self.rawtext, self.rawtext)], [message]
        if self.name == "measured":
            figure, record = split_measured(self.text)
            return [nodes.inline(figure, figure, classes=["measured"], record=record)], []
        shown = self.text.partition(".")[2] if self.name == "setting" else self.text
        return [nodes.literal(shown, shown)], []


def _visit_math(translator: Any, node: nodes.Element) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def _visit_math_block(translator: Any, node: nodes.Element) -> None:
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def _visit_details(translator: Any, node: nodes.Element) -> None:
    translator.body.append("<details>")


def _depart_details(translator: Any, node: nodes.Element) -> None:
    translator.body.append("</details>\n")


def _visit_summary(translator: Any, node: nodes.Element) -> None:
    translator.body.append("<summary>")


def _depart_summary(translator: Any, node: nodes.Element) -> None:
    translator.body.append("</summary>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add everything to Sphinx."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    app.add_node(details, html=(_visit_details, _depart_details))
    app.add_node(summary, html=(_visit_summary, _depart_summary))
    app.add_directive("quiz", QuizDirective)
    app.add_directive("answers", AnswersDirective)
    for name in ("path", "setting", "measured"):
        app.add_role(name, NameRole())
    return {"parallel_read_safe": True, "version": "1"}
