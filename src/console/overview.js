// How the server is doing: figures, their last 15 minutes, and what needs attention.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { call, ready } from "./api.js";
import { Chart, Failure, Loading, bytes, micros, number, plural, usePoll } from "./ui.js";

const SAMPLES_MAX = 900;

/** Joins newer samples to those that are there. */
function join(old, more) {
  const from = more.at_ms.findIndex(at => at > (old.at_ms.at(-1) ?? 0));
  if (from < 0) return old;
  const columns = {};
  for (const [name, values] of Object.entries(more.columns)) {
    const before = old.columns[name] ?? new Array(old.at_ms.length).fill(0);
    columns[name] = [...before, ...values.slice(from)].slice(-SAMPLES_MAX);
  }
  return { ...more, at_ms: [...old.at_ms, ...more.at_ms.slice(from)].slice(-SAMPLES_MAX), columns };
}

/** Returns the figures of the last 15 minutes. After the first time, only the newest samples are asked for. */
function useFigures() {
  const kept = useRef(null);
  return usePoll(async signal => {
    const isRecent = kept.current?.at_ms.length && Date.now() - kept.current.at_ms.at(-1) < 8_000;
    const more = await call(isRecent ? "/stats?last=10" : "/stats", { signal });
    kept.current = isRecent ? join(kept.current, more) : more;
    return kept.current;
  }, 1000);
}

const Tile = ({ label, value, note, kind = "", href }) => html`<div class="tile ${kind}"><dt>${href ? html`<a href=${href}>${label}</a>` : label}</dt><dd>${value}${note && html`<small>${note}</small>`}</dd></div>`;

function sumOf(figures, prefix) {
  const columns = Object.entries(figures.columns).filter(([name]) => name.startsWith(prefix));
  return figures.at_ms.map((_, index) => columns.reduce((sum, [, values]) => sum + values[index], 0));
}

export function Overview() {
  const { value: figures, error } = useFigures();
  const { value: state, error: unreachable } = usePoll(() => ready(), 5000);
  const { value: policies } = usePoll(signal => call("/policies", { signal }), 5000);
  const [, tick] = useState(0);
  useEffect(() => { const timer = setInterval(() => tick(n => n + 1), 5000); return () => clearInterval(timer); }, []);
  if (!figures) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  const column = name => figures.columns[name] ?? [];
  const last = name => column(name).at(-1) ?? 0;
  const recent = values => { const some = values.slice(-10); return some.length ? some.reduce((a, b) => a + b, 0) / some.length : 0; };
  const [events, dropped] = [sumOf(figures, "events."), sumOf(figures, "dropped.")];
  const reasons = Object.entries(figures.columns).filter(([name, values]) => name.startsWith("dropped.") && values.some(Boolean));
  const age = figures.at_ms.length ? Date.now() - figures.at_ms.at(-1) : 0;
  const trouble = policies?.policies.filter(policy => policy.circuit_open) ?? [];
  const ended = policies?.policies.filter(({ candidate }) => candidate === "refused" || candidate === "returned") ?? [];
  return html`
    <${Failure} error=${unreachable ?? error} what="The figures are not current" />
    ${state?.warning && html`<p class="notice bad" role="alert"><strong>Exposed:</strong> ${state.warning}. <span>Configure <code>auth</code>, or listen on loopback.</span></p>`}
    ${state && !state.isReady && html`<p class="notice warn" role="alert"><strong>Not ready:</strong> ${state.detail}</p>`}
    ${trouble.map(policy => html`<p class="notice bad" role="alert" key=${policy.name}><strong>Circuit open:</strong> <a href=${`#/policies`}>${policy.name}</a> faulted too often in a row and is not called.</p>`)}
    ${policies?.rejected.map(rejected => html`<p class="notice warn" key=${rejected.name}><strong>Refused:</strong> <a href="#/policies">${rejected.name}</a> ${rejected.reason}</p>`)}
    ${ended.map(({ name, candidate }) => html`<p class="notice warn" key=${name}><strong>Candidate ${candidate}:</strong> <a href="#/policies">${name}</a> ${candidate === "refused" ? "has a candidate whose file is refused" : "decides again, since its canary faulted too often in a row"}.</p>`)}
    <dl class="tiles" aria-label="Now">
      <${Tile} label="Sessions" value=${number(last("sessions"))} note=${plural(last("mailboxes"), "mailbox", "mailboxes")} href="#/users" />
      <${Tile} label="Events a second" value=${number(recent(events))} note="mean of 10 s" href="#/live" />
      <${Tile} label="Sent a second" value=${number(recent(column("sent")))} note=${`${bytes(recent(column("sent_bytes")))}/s`} />
      <${Tile} label="Policy calls, p99" value=${last("calls") ? micros(last("call_p99_us")) : "–"} note=${`${number(recent(column("calls")))} a second`} href="#/policies" />
      <${Tile} label="Answers, p99" value=${last("publish_p99_us") ? micros(last("publish_p99_us")) : "–"} note="to producers" />
      <${Tile} label="Dropped, 15 min" value=${number(dropped.reduce((a, b) => a + b, 0))} note="messages" kind=${recent(dropped) > 0 ? "warn" : ""} />
      <${Tile} label="Dead letters" value=${number(last("dead_letters"))} kind=${last("dead_letters") ? "warn" : ""} href="#/letters" />
    </dl>
    <p class="quiet" aria-live="polite">${age > 5000 ? `The newest sample is ${plural(Math.round(age / 1000), "second")} old.` : ""}</p>
    <div class="charts">
      <${Chart} title="Events a second" at=${figures.at_ms} series=${["routed", "failed", "unwanted", "duplicate", "rejected"].map(name => ({ name, values: column(`events.${name}`) })).filter(({ name, values }) => name === "routed" || values.some(Boolean))} />
      <${Chart} title="Messages a second" at=${figures.at_ms} series=${[{ name: "posted", values: column("posted") }, { name: "sent", values: column("sent") }, { name: "from clients", values: column("client_messages") }]} />
      <${Chart} title="Time of policy calls" at=${figures.at_ms} show=${micros} series=${[{ name: "p99", values: column("call_p99_us") }, { name: "median", values: column("call_p50_us") }]} />
      <${Chart} title="Time of answers to producers" at=${figures.at_ms} show=${micros} series=${[{ name: "p99", values: column("publish_p99_us") }, { name: "median", values: column("publish_p50_us") }]} />
      <${Chart} title="Sessions" at=${figures.at_ms} series=${[{ name: "open", values: column("sessions") }, { name: "opened a second", values: column("opened") }]} />
      <${Chart} title="Dropped messages a second" at=${figures.at_ms} series=${reasons.length ? reasons.slice(0, 5).map(([name, values]) => ({ name: name.slice(8).replaceAll("_", " "), values })) : [{ name: "none", values: dropped }]} />
      <${Chart} title="Policies' trouble a second" at=${figures.at_ms} series=${[{ name: "faults", values: column("faults") }, { name: "refusals", values: column("refusals") }]} />
    </div>`;
}
