// What happens, while it happens. The lists are bounded: however much there is, the page keeps the newest entries alone.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";
import { stream } from "./api.js";
import { Badge, Code, Empty, Failure, link, number, payload, plural, pretty, time } from "./ui.js";
import { FaultView, Outcome, Story } from "./story.js";

/** Entries that are kept and shown. Nobody reads more. */
const SHOWN_MAX = 300;
/** How often the list is drawn. */
const DRAW_MS = 250;
const KINDS = ["event", "session", "message", "policy", "fault", "reload"];

/** Returns the state of the feed: its entries, the newest first, and its connection, with what was lost. */
function useFeed(filters, isPaused) {
  const [view, setView] = useState({ entries: [], state: "connecting", lost: 0, held: 0 });
  const paused = useRef(isPaused);
  paused.current = isPaused;
  const query = new URLSearchParams(Object.entries(filters).filter(([, value]) => value)).toString();
  useEffect(() => {
    const abort = new AbortController();
    const kept = { query, entries: [], state: "connecting", lost: 0, held: 0, error: undefined, payloads: true };
    let serial = 0, isChanged = true, retryMs = 500, timer;
    const take = (kind, data) => {
      isChanged = true;
      retryMs = 500;
      if (kind === "hello") { kept.state = "open"; kept.error = undefined; kept.payloads = data.payloads; return; }
      if (kind === "end") { kept.state = "ended"; return; }
      if (kind === "lost") kept.lost += data.count;
      else if (paused.current) { kept.held += 1; return; }
      kept.entries.unshift({ serial: serial += 1, kind, data });
      if (kept.entries.length > SHOWN_MAX) kept.entries.length = SHOWN_MAX;
    };
    const run = async () => {
      try {
        await stream(query ? `/live?${query}` : "/live", take, abort.signal);
        kept.state = "waiting";
      } catch (error) {
        if (abort.signal.aborted) return;
        [kept.state, kept.error] = ["waiting", error];
        if (error.status === 400 || error.status === 401) { kept.state = "refused"; isChanged = true; return; }
      }
      isChanged = true;
      timer = setTimeout(run, retryMs * (0.5 + Math.random()));
      retryMs = Math.min(retryMs * 2, 10_000);
    };
    const drawing = setInterval(() => {
      if (!paused.current && kept.held) { kept.held = 0; isChanged = true; }
      if (!isChanged || document.hidden) return;
      isChanged = false;
      setView({ ...kept, entries: kept.entries.slice() });
    }, DRAW_MS);
    setView({ ...kept, entries: [] });
    // A filter that is being typed is not asked for letter by letter.
    timer = setTimeout(run, 200);
    return () => { abort.abort(); clearInterval(drawing); clearTimeout(timer); };
  }, [query]);
  // What is known of another filter says nothing of this one.
  return view.query === query ? view : { entries: [], state: "connecting", lost: 0, held: 0 };
}

function summary(kind, data) {
  switch (kind) {
    case "event": return html`${data.policies.map(policy => html`<${Outcome} key=${policy.name} outcome=${policy.outcome} /> `)}${plural(data.recipients, "recipient")}, ${number(data.posted)} posted${data.dropped?.length > 0 && html` <${Badge} kind="warn">${data.dropped.map(({ reason, count }) => `${count} ${reason}`).join(", ")}<//>`}`;
    case "session": return html`<${Badge} kind=${data.state === "opened" ? "good" : ""}>${data.state}<//> ${data.user}${data.code ? ` · ${data.code} ${data.reason}` : ""}`;
    case "message": return html`<${Badge} kind=${data.outcome === "handled" ? "good" : "warn"}>${data.outcome}<//> from ${data.user}${data.refusal ? `: ${data.refusal.detail}` : ""}`;
    case "policy": return html`<${Badge} kind=${data.outcome === "answered" || data.outcome === "left" ? "" : "bad"}>${data.outcome.replace("_", " ")}<//> ${data.function} of ${data.user}`;
    case "fault": return html`<${Badge} kind="bad">${data.kind}<//> ${data.detail}`;
    case "reload": return html`<${Badge} kind=${data.outcome === "swapped" ? "good" : "bad"}>${data.outcome.replace("_", " ")}<//> ${(data.changed ?? data.rejected?.map(({ name }) => name) ?? []).join(", ")}${data.detail ?? ""}`;
    case "lost": return html`${plural(data.count, "entry", "entries")} were too many to be sent`;
    default: return "";
  }
}

const subject = (kind, data) => ({ event: data.type, session: "session", message: "client's message", policy: data.policy, fault: data.policy, reload: "policies", lost: "lost" })[kind] ?? kind;

function Details({ entry: { kind, data }, close }) {
  const heading = useRef();
  useEffect(() => heading.current.focus(), [data]);
  return html`<aside class="details card" aria-label="The opened entry" onKeyDown=${event => event.key === "Escape" && close()}>
    <div class="row spread"><h2 ref=${heading} tabindex="-1">${subject(kind, data)}</h2><button onClick=${close}>Close</button></div>
    <p class="quiet">${data.at && `${data.at} · `}${kind}${data.user && html` · <a href=${link("users", data.user)}>${data.user}</a>`}</p>
    ${kind === "event" ? html`<${Story} event=${data} />` : kind === "fault" ? html`<${FaultView} fault=${data} />` : html`<p>${summary(kind, data)}</p>`}
    ${kind === "message" && data.data && html`<${Code} label="The client's message">${payload(data.data)}<//>`}
    ${kind === "reload" && data.rejected?.map(({ name, reason }) => html`<p key=${name}><strong>${name}</strong> ${reason}</p>`)}
    <details><summary>As it was received</summary><${Code} label="The entry as JSON">${pretty(data)}<//></details>
  </aside>`;
}

export function Live({ selected }) {
  const [filters, setFilters] = useState({ user: selected ?? "", type: "", policy: "", kind: "" });
  const [isPaused, setIsPaused] = useState(false);
  const [opened, setOpened] = useState(null);
  const { entries, state, error, lost, held, payloads } = useFeed(filters, isPaused);
  const set = name => event => setFilters({ ...filters, [name]: event.target.value.trim() });
  const close = () => { const serial = opened.serial; setOpened(null); requestAnimationFrame(() => document.getElementById(`entry-${serial}`)?.focus()); };
  const states = { connecting: "Connecting…", open: isPaused ? "Paused" : "Live", ended: "The server is stopping", waiting: "Connecting again…", refused: "Refused" };
  const rows = useMemo(() => entries.map(entry => html`<tr key=${entry.serial} class="kind-${entry.kind} ${opened?.serial === entry.serial ? "selected" : ""}">
      <td class="when">${time(entry.data.at)}</td>
      <td>${entry.kind === "lost" ? html`<span class="quiet">lost</span>` : html`<button class="plain" id=${`entry-${entry.serial}`} aria-expanded=${opened?.serial === entry.serial} onClick=${() => setOpened(entry)}>${subject(entry.kind, entry.data)}</button>`}</td>
      <td>${summary(entry.kind, entry.data)}</td></tr>`), [entries, opened]);
  return html`
    <form class="filters" onSubmit=${event => event.preventDefault()}>
      <label>User<input value=${filters.user} onInput=${set("user")} placeholder="1001" /></label>
      <label>Type<input value=${filters.type} onInput=${set("type")} placeholder="pooling.*" /></label>
      <label>Policy<input value=${filters.policy} onInput=${set("policy")} placeholder="chat" /></label>
      <label>Kind<select value=${filters.kind} onChange=${set("kind")}><option value="">all</option>${KINDS.map(kind => html`<option key=${kind} value=${kind}>${kind}</option>`)}</select></label>
      <button type="button" aria-pressed=${isPaused} onClick=${() => setIsPaused(!isPaused)}>${isPaused ? "Go on" : "Pause"}</button>
    </form>
    <p class="status"><span class="dot ${state === "open" && !isPaused ? "on" : ""}"></span><span role="status">${states[state]}</span>
      ${held > 0 && ` · ${plural(held, "entry", "entries")} not shown while paused`}${lost > 0 && ` · ${plural(lost, "entry", "entries")} lost: too many`}${payloads === false && " · without payloads: this key has no scope “operate”"}</p>
    <${Failure} error=${error} what="There is no feed now" />
    <div class=${opened ? "split" : ""}>
      <div class="scroll feed" tabindex="0" role="region" aria-label="Entries, the newest first"><table>
        <caption class="hidden">Entries, the newest first</caption>
        <thead><tr><th scope="col">Time</th><th scope="col">What</th><th scope="col">Outcome</th></tr></thead>
        <tbody>${rows}</tbody></table>
        ${entries.length === 0 && html`<${Empty}>Nothing has happened since this page was opened${Object.values(filters).some(Boolean) ? " that passes the filters" : ""}. <a href="#/try">Try</a> publishes an event.<//>`}
      </div>
      ${opened && html`<${Details} entry=${opened} close=${close} />`}
    </div>`;
}
