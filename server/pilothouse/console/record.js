"use strict";

// Shows the record whose id ends the page's path. Everything that a model or a client wrote goes in as text.

const KEPT = "pilothouse.key";
const id = decodeURIComponent(location.pathname.split("/").pop());
// The server may be mounted under a prefix: its routes lie beside the console.
const base = new URL("../../v1/probes/results/", location.href);
const message = document.getElementById("message");
const record = document.getElementById("record");
const key = document.getElementById("key");

function make(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function number(value, digits = 3) {
  return value === null || value === undefined ? "none" : Number(value).toFixed(digits);
}

function headers() {
  const given = sessionStorage.getItem(KEPT);
  return given ? { Authorization: `Bearer ${given}` } : {};
}

async function call(path, options = {}) {
  const answer = await fetch(new URL(path, base), { ...options, headers: { ...headers(), ...options.headers } });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error?.message ?? `${answer.status} ${answer.statusText}`);
  return body;
}

function facts(pairs) {
  const list = make("dl");
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(make("dt", name), value instanceof Node ? value : make("dd", value));
  }
  return list;
}

// How bad a token is, from 0 to 1: its score, counted towards the side on which the probe raises its alarm.
function badness(probe, score) {
  const share = Math.min(Math.max(score, 0), 1);
  return probe.alarm === "high" ? share : 1 - share;
}

function tokens(probe, entries) {
  const shown = make("p", undefined, "tokens");
  for (const entry of entries) {
    const span = make("span", entry.token ?? "▢ ");
    if (entry.score === null || entry.score === undefined) {
      span.className = "unscored";
      span.title = entry.reason ? `not scored: ${entry.reason}` : "not scored: the last token is never read";
    } else {
      const bad = badness(probe, entry.score);
      span.style.backgroundColor = `hsl(${120 - 120 * bad} 75% 50% / ${(0.1 + 0.5 * Math.abs(2 * bad - 1)).toFixed(2)})`;
      span.title = `score ${number(entry.score)}, logit ${number(entry.logit, 2)}`;
    }
    shown.append(span);
  }
  return shown;
}

function labels(choice, name, probe) {
  const line = make("p", undefined, "labels");
  line.append(make("span", `Was it ${JSON.stringify(probe.label)}? `));
  for (const value of [true, false]) {
    const button = make("button", value ? "yes" : "no");
    button.type = "button";
    button.addEventListener("click", async () => {
      const body = { probe: name, value, source: "console", choice: choice.index };
      try {
        await call(`${encodeURIComponent(id)}/label`, {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(body),
        });
        message.textContent = `Kept: ${name} of choice ${choice.index} is labelled ${value ? "yes" : "no"}.`;
      } catch (error) {
        message.textContent = error.message;
      }
    });
    line.append(button);
  }
  return line;
}

function probeSection(choice, name, probe) {
  const section = make("section");
  section.append(make("h3", name));
  section.append(
    facts([
      ["score", `${number(probe.score)} that it is ${JSON.stringify(probe.label)}`],
      ["level", probe.level],
      ["threshold", `${number(probe.threshold)}, alarm ${probe.alarm}`],
      ["flagged", make("dd", probe.flagged ? "yes" : "no", probe.flagged ? "bad" : "")],
      ["not scored", probe.reason],
      ["version", make("code", probe.version)],
    ]),
  );
  if (probe.prompt_tokens) section.append(make("div", "Prompt"), tokens(probe, probe.prompt_tokens));
  if (probe.tokens) section.append(make("div", "Completion"), tokens(probe, probe.tokens));
  else section.append(make("p", "Scores of tokens are kept of requests that ask for them: \"probes\": {\"tokens\": true}."));
  section.append(labels(choice, name, probe));
  return section;
}

function choiceSection(choice) {
  const section = make("section");
  section.append(make("h2", `Choice ${choice.index}`));
  section.append(facts([["finish reason", choice.finish_reason]]));
  for (const edit of choice.steering ?? []) {
    const what = edit.vector ?? (edit.sae ? `${edit.sae} feature ${edit.feature}` : "inline");
    section.append(
      facts([
        ["edit", `${edit.op} ${what}`],
        ["layers", edit.layers.join(", ")],
        ["tokens edited", String(edit.tokens_edited)],
        ["gate", edit.gate ? `${edit.gate.probe} ${edit.gate.when}, first open at ${edit.gate.first_open}` : null],
      ]),
    );
  }
  for (const [name, probe] of Object.entries(choice.probes ?? {})) section.append(probeSection(choice, name, probe));
  return section;
}

function show(found) {
  record.replaceChildren(
    facts([
      ["time", new Date(found.time * 1000).toISOString()],
      ["model", found.model],
      ["route", found.route],
      ["steering", found.steering],
      ["error", found.error],
      ["trace", found.trace_id],
    ]),
    ...found.choices.map(choiceSection),
  );
}

async function load() {
  message.textContent = "Reading...";
  try {
    show(await call(encodeURIComponent(id)));
    message.textContent = "";
  } catch (error) {
    record.replaceChildren();
    message.textContent = error.message;
  }
}

document.getElementById("id").textContent = id;
document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEPT, key.value);
  load();
});
load();
