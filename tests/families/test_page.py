"""The page of architectures lists those there are: ``python tests/families/test_page.py`` writes it."""

from __future__ import annotations

from pathlib import Path

from ckptconv.api.architectures import architectures

DOCS = Path(__file__).parents[2] / "docs"
WORDS = {
    "architectures.md": {"found": "from arguments", "named": "if the run names it", "given": "`--config`"},
    "zh/architectures.md": {
        "found": "由参数生成",
        "named": "参数写明时生成",
        "given": "`--config`",
    },
}


def rows(words: dict[str, str]) -> str:
    """Return the rows of the table."""
    lines = (
        (
            f"`{f.family}`",
            ", ".join(f"`{t}`" for t in f.model_types),
            words[f.config],
            "✓" if f.mtp else "",
            ", ".join(f"`{p}`" for p in f.parts),
            ", ".join(f.dialects),
        )
        for f in architectures()
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_page_lists_all() -> None:
    for name, words in WORDS.items():
        assert rows(words) in (DOCS / name).read_text(), f"run python {Path(__file__).name}"


if __name__ == "__main__":
    for page, said in WORDS.items():
        head, line, _ = (DOCS / page).read_text().partition("|---|---|---|:-:|---|---|\n")
        (DOCS / page).write_text(head + line + rows(said))
