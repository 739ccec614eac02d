"""The figures as HTML: tiles, plots and tables. Every text that comes from data is escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

from nemo_desta.recipes.report.pieces import card, examples, hours, none, note, percent, table
from nemo_desta.recipes.report.plots import bars, histogram, short, stacked_bars

Figures = Mapping[str, Any]

#: Attributes that get a plot each; the rest is named, with its numbers in the JSON.
_MAX_ATTRIBUTES = 12
_SPLITS = ("train", "valid", "validation", "dev", "eval", "test", "all")


def tiles(found: Figures) -> str:
    """The few numbers to see first."""
    rows, audio, cut = found["rows"], found["audio"], found["responses"]["truncated_share"]
    corpora = len(rows["by_corpus"])
    cells = [
        (f"{rows['total']:,}", "rows", False),
        (f"{audio['clips']:,}", "clips", False),
        (hours(audio["hours"]), "of audio", False),
        (f"{corpora:,}", "corpus" if corpora == 1 else "corpora", False),
        (f"{found['prompts']['distinct']:,}", "different prompts", False),
        (percent(cut), "truncated", cut > 0.2),
    ]
    if dropped := found["rejected"]:
        cells.append((percent(dropped["share"]), "not kept", dropped["share"] > 0.5))
    if found["leaks"]["checked"]:
        cells.append((percent(found["leaks"]["share"]), "speak of a description", found["leaks"]["share"] > 0.01))
    if found["constraints"]:
        cells.append((percent(found["constraints"]["share"]), "keep the asked format", False))
    if found["perplexity"]:
        cells.append((f"{found['perplexity']['own']['total']['perplexity']:.3g}", "target perplexity", False))
    if found["unreadable"]["lines"]:
        cells.append((f"{found['unreadable']['lines']:,}", "unreadable lines", True))
    html = "".join(
        f'<div class="tile{" warn" if warn else ""}"><b>{value}</b><span>{name}</span></div>'
        for value, name, warn in cells
    )
    return f'<div class="tiles">{html}</div>'


def rows_section(found: Figures) -> str:
    rows, repeated = found["rows"], found["duplicates"]
    splits = sorted(rows["by_split"], key=lambda s: (_SPLITS.index(s) if s in _SPLITS else len(_SPLITS), s))
    cards = [card("Rows per corpus and split", stacked_bars(rows["by_corpus_and_split"], splits))]
    for name, title in (("stage", "Stage"), ("llm", "Written by"), ("language", "Language"), ("script", "Script")):
        counts = rows[f"by_{name}"]
        if counts and set(counts) != {"not said"}:
            cards.append(card(title, bars(counts, limit=8)))
    text = (
        f"{repeated['rows']:,} rows repeat the dataset, id and prompt of another one; {repeated['responses']:,} "
        "responses repeat another one word for word."
    )
    return f'<div class="columns two">{"".join(cards)}</div>{note(text)}'


def attributes_section(found: Figures) -> str:
    attributes, total = found["attributes"], found["rows"]["total"]
    if not attributes:
        return none("No seed description states an attribute.")
    cards = []
    for name, one in list(attributes.items())[:_MAX_ATTRIBUTES]:
        title = f"{escape(name)} <small>{one['rows']:,} rows, {percent(one['rows'] / total)}</small>"
        cards.append(card(title, bars(one["values"], total=one["rows"], limit=8)))
    rest = [f"{escape(name)} ({attributes[name]['rows']:,})" for name in list(attributes)[_MAX_ATTRIBUTES:]]
    more = note(f"Also stated: {', '.join(rest)}.") if rest else ""
    return f'<div class="columns">{"".join(cards)}</div>{more}'


def prompts_section(found: Figures) -> str:
    prompts, total = found["prompts"], found["rows"]["total"]
    cards = [card("Most frequent prompts", bars(prompts["frequent"], total=total, limit=12, wide=True))]
    if prompts["by_kind"]:
        cards.append(card("Kinds of prompts", bars(prompts["by_kind"], limit=16)))
    cards.append(card("How prompts begin", bars(prompts["openings"], total=total, limit=12)))
    if found["constraints"]:
        kinds = found["constraints"]["by_kind"]
        lines = [[escape(k), f"{v['rows']:,}", percent(v["share"])] for k, v in kinds.items()]
        cards.append(card("Formats asked for, and kept", table(["format", "rows", "kept"], lines)))
    return f'<div class="columns two">{"".join(cards)}</div>'


def responses_section(found: Figures) -> str:
    responses = found["responses"]
    cards = [card("Answer length", histogram(responses["answer_words"], unit="words of the answer"))]
    if responses["thought_words"]["rows"]:
        thought = histogram(responses["thought_words"], unit="words of the thought", kind="part3")
        cards.append(card("Thought length", thought))
    else:
        cards.append(card("Response length", histogram(responses["characters"], unit="characters of the response")))
    lines = [
        [name, *(f"{one[key]:,}" for key in ("mean", "p5", "p50", "p95", "max"))]
        for name, one in (
            ("answer, words", responses["answer_words"]),
            ("thought, words", responses["thought_words"]),
            ("response, characters", responses["characters"]),
        )
        if one["rows"]
    ]
    text = (
        f"{responses['truncated']:,} responses ({percent(responses['truncated_share'])}) were cut by the token limit"
    )
    if inside := responses["unfinished_thoughts"]:
        text += f", {inside:,} of them inside the thought"
    lengths = table(["", "mean", "5 %", "median", "95 %", "longest"], lines)
    cards.append(card("Lengths", f'<div class="scroll">{lengths}</div>{note(f"{text}.")}'))
    if found["leaks"]["checked"]:
        cards.append(card("Talk of the description", _leaks(found["leaks"])))
    return f'<div class="grid">{"".join(cards)}</div>'


def perplexity_section(found: Figures) -> str:
    """Own rows beside others': the variable by which self-generated targets are explained."""
    result = found["perplexity"]
    if not result:
        return none("Not measured. Give the LLM that will be trained, and its view of the responses is here.")
    scored = {"these rows": result["own"], **(result.get("others") or {})}
    head = ["", "rows", "tokens", "nats per token", "perplexity", "median row"]
    parts = [table(head, [[escape(name), *_scores(one["total"])] for name, one in scored.items()], wide=True)]
    for key, title in (("by_corpus", "corpus"), ("by_stage", "stage"), ("by_llm", "who wrote them")):
        names = sorted({part for one in scored.values() for part in one[key]})
        if len(names) > 1:
            lines = [[escape(part), *(_perplexity(one[key].get(part)) for one in scored.values())] for part in names]
            inside = table(["", *map(escape, scored)], lines, wide=True)
            parts.append(f'<h3 class="next">Perplexity by {title}</h3>{inside}')
    skipped = [f"{name}: {reason} ({n:,})" for name, one in scored.items() for reason, n in one["skipped"].items()]
    if skipped:
        parts.append(note(f"Not scored: {escape('; '.join(skipped))}."))
    text = (
        f"Under <b>{escape(str(result['llm']))}</b>, given description and prompt, end of turn included. At 1.0 "
        "every word is the one that the LLM would have written itself; the higher, the more a target asks it to speak "
        "as somebody else."
    )
    return f'<div class="card">{note(text)}{"".join(parts)}</div>'


def rejected_section(found: Figures) -> str:
    rejected, unreadable = found["rejected"], found["unreadable"]
    if rejected and rejected["total"]:
        text = f"{rejected['total']:,} rows were not kept: {percent(rejected['share'])} of all that were asked for."
        listed = "".join(
            f"<h3>{escape(reason)}</h3>"
            + examples([f"<code>{escape(e['id'])}</code> {escape(e['detail'])}" for e in few[:3]])
            for reason, few in rejected["examples"].items()
        )
        folded = f"<details><summary>examples of each reason</summary>{listed}</details>" if listed else ""
        plot = bars(rejected["reasons"], limit=30, kind="warn")
        html = card("Why rows were not kept", f"{note(text)}{plot}{folded}")
    else:
        html = none("No row was rejected." if rejected else "These rows come without a record of rejected ones.")
    if unreadable["lines"]:
        few = [escape(line) for lines in unreadable["examples"].values() for line in lines][:8]
        html += card("Lines that are no rows", bars(unreadable["reasons"], kind="warn") + examples(few))
    return html


def speed_section(found: Figures) -> str:
    speed = found["speed"]
    if not speed:
        return none("No summary.json with tokens and seconds comes with these rows.")
    lines = [
        ["time of the working processes", hours(speed["seconds"] / 3600)],
        ["answers asked for", _or_dash(speed["attempts"], "{:,}")],
        ["prompt tokens", f"{speed['prompt_tokens']:,} ({short(speed['prompt_tokens'])})"],
        ["new tokens", f"{speed['new_tokens']:,} ({short(speed['new_tokens'])})"],
        ["new tokens per second", _or_dash(speed["new_tokens_per_second"], "{:,.1f}")],
        ["rows per second", _or_dash(speed["rows_per_second"], "{:,.2f}")],
    ]
    if speed["cost"] is not None:
        prices = speed["prices_per_million"]
        lines += [
            ["price per million tokens", f"prompt {prices.get('prompt', 0):g}, new {prices.get('new', 0):g}"],
            ["cost", f"{speed['cost']:,.4g}"],
            ["cost per 1,000 rows", _or_dash(speed["cost_per_1000_rows"], "{:,.4g}")],
        ]
    else:
        lines.append(["cost", "give prices per million tokens to see it"])
    return f'<div class="card narrow">{table(None, lines)}</div>'


def _leaks(leaks: Figures) -> str:
    text = (
        f"{leaks['rows']:,} of {leaks['checked']:,} kept responses that were looked at ({percent(leaks['share'])}) "
        "speak of a description, transcript or metadata, by the lexicon of the leak check."
    )
    few = [f"<code>{escape(e['id'])}</code> {escape(e['detail'])}" for e in leaks["examples"][:5]]
    return note(text) + examples(few)


def _scores(score: Figures) -> list[str]:
    middle = {"perplexity": score["median_row_perplexity"]}
    numbers = [f"{score['rows']:,}", f"{score['tokens']:,}", f"{score['nll']:.4f}"]
    return [*numbers, f"<b>{_perplexity(score)}</b>", _perplexity(middle)]


def _perplexity(score: Figures | None) -> str:
    if score is None:
        return "-"
    value = score["perplexity"]
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.2g}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
