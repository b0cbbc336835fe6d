"use strict";
// Shows the rows of the block of JSON. All that a model wrote becomes text (textContent), never markup.
(() => {
  const { run, rows } = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 50;
  const COLOURS = 8;
  const at = (id) => document.getElementById(id);
  const make = (tag, name = "", ...content) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...content.filter((one) => one !== null && one !== undefined && one !== ""));
    return element;
  };
  const count = (number) => Number(number).toLocaleString("en-US");
  const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
  const figure = (number) => (Number.isInteger(number) ? count(number) : Number(number.toPrecision(4)).toString());
  const seconds = (s) => (s < 1 ? `${s.toFixed(3)} s` : s < 600 ? `${s.toFixed(1)} s` : `${count(Math.round(s / 60))} min`);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const tokens = (row) => row.tokens.prompt + row.tokens.completion;

  // The same colour for an agent, or a termination, in all rows.
  const agents = [...new Set(rows.flatMap((row) => row.turns.filter((turn) => !turn.given).map((turn) => turn.who)))];
  const endings = Object.keys(run.endings);
  const colour = (element, names, name, fixed = {}) => {
    element.style.setProperty("--c", fixed[name] ?? `var(--c${names.indexOf(name) % COLOURS})`);
    return element;
  };
  const dot = (ending) => colour(make("span", "dot"), endings, ending, { error: "var(--bad)" });

  // Names may repeat in the input; then a link says the place, too.
  const seen = new Set();
  const repeated = new Set();
  for (const row of rows) {
    const key = `${row.id}/${row.trial}`;
    if (seen.has(key)) repeated.add(key);
    seen.add(key);
  }
  const link = (row) => {
    const place = repeated.has(`${row.id}/${row.trial}`) ? `/${row.index}` : "";
    return `#row=${encodeURIComponent(row.id)}/${row.trial}${place}`;
  };
  const linked = (hash) => {
    const found = /^#row=([^/]*)(?:\/(\d+))?(?:\/(\d+))?$/.exec(hash);
    if (!found) return undefined;
    let id = found[1];
    try {
      id = decodeURIComponent(id);
    } catch {
      // Not encoded: taken as it is.
    }
    return rows.find(
      (row) =>
        row.id === id &&
        (found[2] === undefined || row.trial === Number(found[2])) &&
        (found[3] === undefined || row.index === Number(found[3])),
    );
  };

  // ---- the head of the page

  const pair = (list, name, value) => list.append(make("div", "", make("dt", "", name), make("dd", "", value)));
  const head = () => {
    document.title = `${run.name}: conversations`;
    at("name").textContent = run.name;
    at("status").textContent = run.status;
    at("made").textContent = `as of ${run.made}`;
    at("note").textContent = run.note ? `On this page: ${run.note}.` : "";
    at("note").hidden = !run.note;
    for (const [name, value] of Object.entries(run.config)) pair(at("config"), name, value);
    const failed = Object.values(run.errors).reduce((sum, number) => sum + number, 0);
    pair(at("figures"), "rows", count(run.rows));
    if (failed) pair(at("figures"), "errors", count(failed));
    for (const [name, value] of Object.entries(run.scores)) pair(at("figures"), name, figure(value));
    for (const [name, value] of Object.entries(run.metrics)) pair(at("figures"), name, figure(value));
    if (run.turns !== null) pair(at("figures"), "turns a row", run.turns.toFixed(1));
    pair(at("figures"), "a row", seconds(run.took_s));
    pair(at("figures"), "tokens", count(run.tokens.prompt + run.tokens.completion));
    for (const ending of endings) {
      const chip = make("button", "ending", dot(ending), ending || "none", make("b", "", count(run.endings[ending])));
      chip.type = "button";
      chip.dataset.ending = ending;
      chip.addEventListener("click", () => {
        at("ending-filter").value = at("ending-filter").value === `=${ending}` ? "" : `=${ending}`;
        filter();
      });
      at("endings").append(chip);
    }
  };

  // ---- filters

  const options = (id, names, show = (name) => name) => {
    for (const name of names) {
      // A value of "" means any.
      const option = make("option", "", show(name));
      option.value = `=${name}`;
      at(id).append(option);
    }
    at(id).hidden = names.length < 2 && id !== "score-filter";
  };
  const scored = {};
  for (const name of new Set(rows.flatMap((row) => row.scores.map((score) => score.label)))) {
    scored[`score ${name}`] = (row) => {
      const score = row.scores.find((one) => one.label === name);
      return score && score.values.length ? mean(score.values) : undefined;
    };
  }
  for (const name of new Set(rows.flatMap((row) => Object.keys(row.metrics)))) {
    scored[`metric ${name}`] = (row) => row.metrics[name];
  }

  const texts = new Map();
  const text = (row) => {
    if (!texts.has(row)) {
      const said = row.turns.flatMap((turn) => [turn.who, ...turn.parts.flatMap((part) => [part.title, part.text])]);
      const error = row.error ? [row.error.type, row.error.message, row.error.traceback ?? ""] : [];
      texts.set(row, [row.id, row.ending, ...said, ...error].join("\n").toLowerCase());
    }
    return texts.get(row);
  };
  const words = () =>
    [...at("query").value.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((found) => found[1] ?? found[2]);
  const chosen = (id) => (at(id).value ? at(id).value.slice(1) : null);
  const order = { turns: (row) => row.said, tokens, took: (row) => row.took_s };

  let matching = rows;
  let page = 0;
  let current;
  const filter = () => {
    const [status, ending, agent, score] = ["status", "ending", "agent", "score"].map((name) => chosen(`${name}-filter`));
    const wanted = words();
    const [least, most] = ["least", "most"].map((id) => (at(id).value === "" ? null : Number(at(id).value)));
    at("range").hidden = score === null;
    matching = rows.filter((row) => {
      if (status !== null && row.status !== status) return false;
      if (ending !== null && row.ending !== ending) return false;
      if (agent !== null && !row.turns.some((turn) => !turn.given && turn.who === agent)) return false;
      if (score !== null) {
        const value = scored[score](row);
        if (value === undefined || (least !== null && value < least) || (most !== null && value > most)) return false;
      }
      return wanted.every((word) => text(row).includes(word));
    });
    const by = order[at("order").value];
    if (by) matching = [...matching].sort((one, other) => by(other) - by(one));
    for (const chip of at("endings").children) chip.setAttribute("aria-pressed", String(chip.dataset.ending === ending));
    page = 0;
    list();
    mark();
  };

  // ---- the list

  const item = (row) => {
    const anchor = make(
      "a",
      "",
      make(
        "div",
        "line",
        make("span", "id mono", row.id),
        row.trial ? make("span", "small", `trial ${row.trial}`) : null,
        make("span", "end", row.ending || row.status, dot(row.ending)),
      ),
      make("div", "asked", row.opening),
      make("div", "small", [plural(row.said, "turn"), `${count(tokens(row))} tokens`, seconds(row.took_s), ...shown(row)].join(" · ")),
    );
    anchor.href = link(row);
    // By the keyboard one goes on to read; with the mouse one stays in the list.
    anchor.addEventListener("click", (event) => {
      if (event.detail === 0) at("conversation").focus();
      reach();
    });
    return make("li", "", anchor);
  };
  const shown = (row) => row.scores.map((score) => `${score.label} ${score.values.map(figure).join(" ")}`);
  const list = () => {
    const pages = Math.max(1, Math.ceil(matching.length / PAGE));
    at("count").textContent =
      matching.length === rows.length ? plural(rows.length, "conversation") : `${count(matching.length)} of ${plural(rows.length, "conversation")}`;
    at("list").replaceChildren(...matching.slice(page * PAGE, (page + 1) * PAGE).map(item));
    at("list").scrollTop = 0;
    at("page").textContent = `page ${count(page + 1)} of ${count(pages)}`;
    at("back").disabled = page === 0;
    at("on").disabled = page >= pages - 1;
    point(false);
  };
  /** Marks the row that is open in the list, and has it in view. */
  const point = (scrolls) => {
    const here = current ? link(current) : "";
    for (const anchor of at("list").querySelectorAll("a")) {
      anchor.removeAttribute("aria-current");
      if (anchor.getAttribute("href") !== here) continue;
      anchor.setAttribute("aria-current", "true");
      // By hand: scrollIntoView would move the page, too, where it is one column.
      const [box, inside] = [at("list").getBoundingClientRect(), anchor.getBoundingClientRect()];
      if (scrolls) at("list").scrollTop += Math.min(0, inside.top - box.top) + Math.max(0, inside.bottom - box.bottom);
    }
  };
  /** Where the page is one column, goes to the conversation below the list. */
  const reach = () => matchMedia("(max-width: 52rem)").matches && at("conversation").scrollIntoView();
  const turnTo = (number) => {
    if (number < 0 || number * PAGE >= matching.length) return;
    page = number;
    list();
  };
  const step = (by) => {
    const place = matching.indexOf(current);
    const next = matching[place < 0 ? 0 : place + by];
    if (!next) return;
    const inList = at("list").contains(document.activeElement);
    location.hash = link(next);
    open(next);
    if (inList) at("list").querySelector('a[aria-current="true"]')?.focus();
  };

  // ---- one conversation

  let detailed = false;
  const details = (summary, ...content) => {
    const element = make("details", "", make("summary", "", summary), ...content);
    element.open = detailed;
    return element;
  };
  const said = (words) => {
    const element = make("div", "said", words);
    element.dir = "auto";
    return element;
  };
  const piece = (part) => {
    if (part.kind === "text") return said(part.text);
    if (part.kind === "reasoning") {
      const element = details(`reasoning, ${plural(part.text.length, "character")}`, said(part.text));
      element.className = "reasoning";
      return element;
    }
    if (part.kind === "tool_call") return make("pre", "tool", "→ ", make("b", "", part.title), `(${part.text})`);
    const isJson = /^[[{]/.test(part.text) && part.text.includes("\n");
    return make("div", "value", make("span", "key", part.title), isJson ? make("pre", "", part.text) : said(part.text));
  };
  const callsOf = (turn) => {
    const used = turn.calls.reduce((sum, call) => sum + (call.usage.prompt_tokens ?? 0) + (call.usage.completion_tokens ?? 0), 0);
    const replayed = turn.calls.filter((call) => call.replayed).length;
    const facts = [plural(turn.calls.length, "call"), used ? `${count(used)} tokens` : "", replayed ? `${replayed} replayed` : ""];
    const table = make("table");
    const cells = (tag, values) => table.append(make("tr", "", ...values.map((value) => make(tag, typeof value === "number" ? "number" : "", value === null ? "" : String(value)))));
    cells("th", ["call", "took", "prompt", "cached", "completion", "tries", "server", ""]);
    for (const call of turn.calls) {
      const usage = call.usage;
      cells("td", [
        call.name, seconds(call.took_s), usage.prompt_tokens ?? null, usage.prompt_tokens_details?.cached_tokens ?? null,
        usage.completion_tokens ?? null, call.attempts, call.endpoint, "",
      ]);
      const last = table.lastChild.lastChild;
      if (call.replayed) last.append(make("span", "replayed", "replayed "));
      if (call.error) last.append(make("span", "bad", call.error));
    }
    return details(facts.filter(Boolean).join(" · "), make("div", "wide", table));
  };
  const turnOf = (turn, number) => {
    const when = [turn.note, turn.at_s === null ? "" : `at ${turn.at_s.toFixed(1)} s`, turn.took_s === null ? "" : `took ${seconds(turn.took_s)}`];
    const heading = make("h3", "", turn.given ? "" : make("span", "small", String(number)), turn.who, make("span", "small", when.filter(Boolean).join(" · ")));
    const element = make("article", turn.given ? "turn given" : "turn", heading, ...turn.parts.map(piece));
    heading.querySelector(".small:first-child")?.style.setProperty("margin", "0");
    if (!turn.given) colour(element, agents, turn.who);
    if (turn.calls.length) element.append(callsOf(turn));
    return element;
  };
  const outcome = (row) => {
    const facts = make("div", "facts");
    const fact = (name, value) => facts.append(make("span", "", make("span", "dim", `${name} `), value));
    for (const score of row.scores) {
      fact(score.label, score.values.map((value, n) => `${figure(value)} (${score.answers[n] ?? "nothing to read"})`).join(", "));
    }
    for (const [name, value] of Object.entries(row.metrics)) fact(name, figure(value));
    fact("prompt", `${count(row.tokens.prompt)} tokens${row.tokens.cached ? `, ${count(row.tokens.cached)} cached` : ""}`);
    fact("completion", `${count(row.tokens.completion)} tokens`);
    fact("took", seconds(row.took_s));
    const heading = make("h3", "", make("span", row.error ? "bad" : "good", row.status), row.ending === row.status ? "" : row.ending);
    const element = make("article", "turn outcome", heading, facts);
    if (row.error) {
      const tries = row.error.attempts > 1 ? ` (after ${row.error.attempts} tries)` : "";
      element.append(make("div", "said bad", `${row.error.type}: ${row.error.message}${tries}`));
      if (row.error.traceback) element.append(make("pre", "", row.error.traceback));
    }
    return colour(element, [], "", { "": row.error ? "var(--bad)" : "var(--good)" });
  };
  const button = (words, act, shortcut) => {
    const element = make("button", "", words);
    element.type = "button";
    element.addEventListener("click", act);
    if (shortcut) element.setAttribute("aria-keyshortcuts", shortcut);
    return element;
  };
  const toggle = () => {
    detailed = !detailed;
    for (const element of at("conversation").querySelectorAll("details")) element.open = detailed;
    at("conversation").querySelector(".all")?.replaceChildren(detailed ? "Hide details" : "Show details");
  };
  const open = (row) => {
    current = row;
    const all = button(detailed ? "Hide details" : "Show details", toggle, "d");
    all.classList.add("all");
    const title = make(
      "div",
      "title",
      make("h2", "mono", row.id),
      make("span", "dim", `trial ${row.trial}, place ${row.index} of the input`),
      make("div", "buttons", all, button("↑", () => step(-1), "k"), button("↓", () => step(1), "j")),
    );
    title.querySelector("button:nth-of-type(2)").setAttribute("aria-label", "Conversation before");
    title.querySelector("button:nth-of-type(3)").setAttribute("aria-label", "Next conversation");
    let number = 0;
    const turns = row.turns.map((turn) => turnOf(turn, turn.given ? 0 : ++number));
    at("conversation").replaceChildren(title, ...turns, outcome(row));
    at("conversation").scrollTop = 0;
    const place = matching.indexOf(row);
    if (place >= 0 && Math.floor(place / PAGE) !== page) turnTo(Math.floor(place / PAGE));
    point(true);
    mark();
  };
  /** Marks what is searched for in the conversation, without touching it. */
  const mark = () => {
    if (!CSS.highlights) return;
    const wanted = words();
    const ranges = [];
    const walker = document.createTreeWalker(at("conversation"), NodeFilter.SHOW_TEXT);
    while (wanted.length && ranges.length < 5000 && walker.nextNode()) {
      const content = walker.currentNode.data.toLowerCase();
      for (const word of wanted) {
        for (let from = content.indexOf(word); from >= 0; from = content.indexOf(word, from + word.length)) {
          // Lower case can be longer than what it is of.
          if (from + word.length > walker.currentNode.length) break;
          const range = new Range();
          range.setStart(walker.currentNode, from);
          range.setEnd(walker.currentNode, from + word.length);
          ranges.push(range);
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };
  const follow = () => {
    const row = linked(location.hash);
    if (row && row !== current) {
      open(row);
      reach();
    }
    if (!row && location.hash.startsWith("#row=")) {
      current = undefined;
      at("conversation").replaceChildren(make("p", "empty", `This page has no row ${location.hash.slice(5)}.`, run.note ? ` It holds ${run.note}.` : ""));
      point(false);
    }
  };

  // ---- begin

  head();
  options("status-filter", [...new Set(rows.map((row) => row.status))].sort());
  options("ending-filter", [...new Set(rows.map((row) => row.ending))].sort(), (name) => name || "none");
  options("agent-filter", agents);
  options("score-filter", Object.keys(scored));
  at("score-filter").hidden = !Object.keys(scored).length;
  let waiting;
  at("query").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  for (const id of ["status-filter", "ending-filter", "agent-filter", "score-filter", "least", "most", "order"]) at(id).addEventListener("input", filter);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("clear").addEventListener("click", () => {
    at("filters").reset();
    filter();
  });
  at("back").addEventListener("click", () => turnTo(page - 1));
  at("on").addEventListener("click", () => turnTo(page + 1));
  at("skip").addEventListener("click", (event) => {
    event.preventDefault();
    at("conversation").focus();
  });
  const keys = {
    j: () => step(1), k: () => step(-1), "]": () => turnTo(page + 1), "[": () => turnTo(page - 1), d: toggle, "/": () => at("query").focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === at("query")) at("query").blur();
    if (event.target.matches("input, select, textarea") || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  window.addEventListener("hashchange", follow);
  filter();
  follow();
  if (!current && !location.hash.startsWith("#row=")) {
    if (rows.length) open(rows[0]);
    else at("conversation").replaceChildren(make("p", "empty", "No conversations."));
  }
})();
