// The pages on which something is looked up, tried or changed.

import { html, useRef, useState } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import { Action, Badge, Code, Empty, Failure, Loading, Table, bytes, link, micros, moment, number, payload, plural, pretty, usePoll } from "./ui.js";
import { Candidate } from "./candidate.js";
import { FaultView, Outcome, Story } from "./story.js";

const POLL_MS = 3000;

/** Says why publishing is not possible here, if the console has an address of its own. */
const published = promise => promise.catch(error => {
  if (error.status !== 404) throw error;
  throw new Error("Producers have another address (listen) than this console (operate_listen): publish there, as with signalpost send.");
});

export function Users({ selected }) {
  const [prefix, setPrefix] = useState("");
  const [online, setOnline] = useState("");
  const [pages, setPages] = useState([""]);
  const after = pages.at(-1);
  const query = new URLSearchParams(Object.entries({ prefix, online, after, limit: 50 }).filter(([, value]) => value !== "")).toString();
  const { value, error } = usePoll(signal => call(`/users?${query}`, { signal }), POLL_MS, [query]);
  const search = set => event => { set(event.target.value); setPages([""]); };
  if (selected) return html`<${User} key=${selected} user=${selected} />`;
  return html`
    <form class="filters" role="search" onSubmit=${event => event.preventDefault()}>
      <label>User begins with<input type="search" value=${prefix} onInput=${search(setPrefix)} /></label>
      <label>Who<select value=${online} onChange=${search(setOnline)}><option value="">everybody</option><option value="true">online</option><option value="false">away</option></select></label>
    </form>
    <${Failure} error=${error} />
    ${!value ? !error && html`<${Loading} />` : value.users.length === 0 ? html`<${Empty}>${prefix || online ? "No user is like that." : "Nobody is connected, and nothing waits in a mailbox."}<//>` : html`
      <${Table} caption="Users" head=${["User", "Sessions", { number: "In the mailbox" }, { number: "Bytes" }, { number: "Newest seq" }]}>
        ${value.users.map(user => html`<tr key=${user.user}><td><a href=${link("users", user.user)}>${user.user}</a></td>
          <td>${user.online ? html`<${Badge} kind="good">${plural(user.sessions, "session")}<//>` : html`<span class="quiet">away</span>`}</td>
          <td class="right">${number(user.messages)}</td><td class="right">${bytes(user.bytes)}</td><td class="right">${number(user.seq)}</td></tr>`)}
      <//>`}
    <div class="row pager"><button disabled=${pages.length < 2} onClick=${() => setPages(pages.slice(0, -1))}>Previous</button>
      <button disabled=${!value?.next} onClick=${() => setPages([...pages, value.next])}>Next</button><span class="quiet">page ${pages.length}</span></div>`;
}

function User({ user }) {
  const path = `/users/${encodeURIComponent(user)}`;
  const { value, error, reload } = usePoll(signal => call(path, { signal }), POLL_MS, [user]);
  const text = useRef();
  const end = async () => { const { ended } = await call(`${path}/sessions`, { method: "DELETE" }); setTimeout(reload, 300); return `${plural(ended, "session")} ended.`; };
  const send = async () => {
    const receipt = await published(call(`${path}/messages`, { method: "POST", body: text.current.value }));
    reload();
    return receipt.posted ? "Posted." : `Dropped: ${receipt.dropped.map(({ reason }) => reason).join(", ")}.`;
  };
  return html`
    <p><a href="#/users">All users</a> · <a href=${link("live", user)}>what happens to this user</a></p>
    <h2 class="long">${user}</h2>
    <${Failure} error=${error} />
    ${!value ? !error && html`<${Loading} />` : html`
      <section class="card"><h3>Sessions</h3>
        ${value.sessions.length === 0 ? html`<${Empty}>This user is away.<//>` : html`<${Table} caption="Sessions" head=${["Session", "Opened", "Subprotocol", "Attributes", { number: "Seq" }]}>
          ${value.sessions.map(session => html`<tr key=${session.id}><td><code>${session.id}</code></td><td>${moment(session.opened)}</td><td>${session.subprotocol ?? "plain"}</td>
            <td>${Object.entries(session.attributes).map(([name, value]) => `${name}=${value}`).join(" ") || "–"}</td><td class="right">${number(session.seq)}</td></tr>`)}<//>
          <${Action} kind="danger" label="End all sessions" run=${end} confirm=${`End ${plural(value.sessions.length, "session")} of ${user}? The clients are told not to come back by themselves.`} />`}
      </section>
      <section class="card"><h3>Mailbox</h3>
        ${value.mailbox ? html`<dl class="facts"><dt>Messages</dt><dd>${number(value.mailbox.messages)} (${bytes(value.mailbox.bytes)})</dd><dt>Newest seq</dt><dd>${number(value.mailbox.seq)}</dd><dt>Epoch</dt><dd><code>${value.mailbox.epoch}</code></dd></dl>` : html`<${Empty}>This user has no mailbox now.<//>`}
      </section>`}
    <section class="card"><h3>Send a test message</h3>
      <label for="test-message">One JSON value, which formatting policies see as any message</label>
      <textarea id="test-message" ref=${text} rows="4" spellcheck=${false}>${'{ "type": "test", "text": "hello" }'}</textarea>
      <${Action} kind="primary" label="Send it" run=${send} />
    </section>`;
}

export function Group({ selected = "" }) {
  const [after, setAfter] = useState([0]);
  const { value, error } = usePoll(signal => call(`/groups/${encodeURIComponent(selected)}?limit=100&after=${after.at(-1)}`, { signal }), POLL_MS, [selected, after.at(-1)]);
  return html`<h2 class="long">${selected}</h2><${Failure} error=${error} />
    ${value && html`<p class="quiet">${plural(value.size, "member")}; the policy ${value.policy} added the first.</p>
      <${Table} caption="Members" head=${["Member, in the order of joining"]}>${value.members.map(user => html`<tr key=${user}><td><a href=${link("users", user)}>${user}</a></td></tr>`)}<//>
      <div class="row pager"><button disabled=${after.length < 2} onClick=${() => setAfter(after.slice(0, -1))}>Previous</button><button disabled=${value.next === undefined} onClick=${() => setAfter([...after, value.next])}>Next</button></div>`}`;
}

export function Policies() {
  const { value, error, reload } = usePoll(signal => call("/policies", { signal }), 1000);
  const renew = async () => { const { revision, changed } = await call("/policies/reload", { method: "POST" }); reload(); return changed.length ? `Revision ${revision}: ${changed.join(", ")}.` : "Nothing has changed."; };
  if (!value) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  return html`
    <${Failure} error=${error} />
    <div class="row spread"><p class="quiet">Revision ${value.revision} · set <code>${value.id.slice(0, 12)}</code></p><${Action} label="Reload now" run=${renew} /></div>
    ${value.rejected.map(rejected => html`<section class="card notice warn" key=${rejected.name}><h2>${rejected.name} was refused</h2><p>It ${rejected.reason}</p>
      <p class="quiet"><code>${rejected.file}</code> · ${moment(rejected.at)} · ${rejected.is_retried ? "it is tried again by itself" : "it is tried again when the file changes, or at a reload"}</p></section>`)}
    ${value.policies.length > 0 && !value.policies.some(({ candidate }) => candidate) && html`<p class="quiet">No policy has a candidate. <code>[policies.NAME.candidate]</code> in the configuration tries another version beside the one that serves.</p>`}
    ${value.policies.length === 0 && html`<${Empty}>There are no policies: events reach nobody, and direct messages still do.<//>`}
    ${value.policies.map(policy => html`<section class="card policy-card" key=${policy.name} aria-label=${policy.name}>
      <div class="row spread"><h2>${policy.name} <span class="quiet">${policy.version}</span></h2><span>${policy.roles.map(role => html`<${Badge} key=${role}>${role.toLowerCase()}<//> `)}${policy.circuit_open && html`<${Badge} kind="bad">circuit open<//>`}</span></div>
      <dl class="facts">
        <dt>Digest</dt><dd><code title=${policy.digest}>${policy.digest.slice(0, 16)}…</code> <span class="quiet">${policy.file}</span></dd>
        <dt>Events</dt><dd>${policy.events.join(", ") || "–"}</dd>
        <dt>Grants</dt><dd>${policy.grants.map(grant => html`<${Badge} key=${grant}>${grant}<//> `)}${policy.grants.length === 0 && "none"}</dd>
        ${policy.vary?.length > 0 && html`<dt>Varies on</dt><dd>${policy.vary.join(", ")}</dd>`}
        <dt>Calls</dt><dd>${plural(policy.counters.calls, "call")}, ${plural(policy.counters.refusals, "refusal")}, <span class=${policy.counters.faults ? "bad" : ""}>${plural(policy.counters.faults, "fault")}</span>, ${plural(policy.counters.idle_instances, "idle instance")}</dd>
        ${policy.times?.filter(({ calls }) => calls > 0).map(({ function: name, calls, p50_us, p99_us }) => html`<dt key=${name}>${name}</dt><dd>p50 ${micros(p50_us)}, p99 ${micros(p99_us)} <span class="quiet">of ${number(calls)} since the start</span></dd>`)}
        <dt>On a fault</dt><dd>${policy.roles.map(role => `${role.toLowerCase()}: ${policy.on_fault[role.toLowerCase()]}`).join(", ")}</dd>
      </dl>
      ${policy.last_fault && html`<h3>Last fault <span class="quiet">${moment(policy.last_fault.at)}${policy.last_fault.event && ` · event ${policy.last_fault.event}`}</span></h3><${FaultView} fault=${policy.last_fault} />`}
      ${policy.candidate && html`<${Candidate} policy=${policy.name} changed=${reload} />`}
    </section>`)}`;
}

export function Letters({ selected }) {
  const { value, error, reload } = usePoll(signal => call("/dead-letters", { signal }), POLL_MS);
  

  if (!value) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  if (selected) return html`<${Letter} key=${selected} id=${selected} />`;
  const all = async (path, method, say) => { const answer = await call(path, { method }); reload(); return say(answer); };
  return html`
    <${Failure} error=${error} />
    <p class="quiet">Events and messages that policies faulted on, that a sink did not take, or that no policy was asked about. They are kept until they are retried or deleted.</p>
    ${value.dead_letters.length === 0 ? html`<${Empty}>There are no dead letters.<//>` : html`
      <div class="row"><${Action} label="Retry all" run=${() => all("/dead-letters/retry", "POST", ({ retried, failed, left }) => `${retried} retried, ${failed} failed again, ${left} left.`)} />
        <${Action} kind="danger" label="Delete all" confirm=${`Delete ${plural(value.letters, "dead letter")}? They can't be brought back.`} run=${() => all("/dead-letters", "DELETE", ({ deleted }) => `${deleted} deleted.`)} />
        <span class="quiet">${plural(value.letters, "letter")}, ${bytes(value.bytes)}</span></div>
      <${Table} caption="Dead letters" head=${["Letter", "When", "Policy", "Type", "Why", { number: "Attempts" }]}>
        ${[...value.dead_letters].reverse().map(letter => html`<tr key=${letter.id}><td><a href=${`#/letters/${letter.id}`}>${letter.id}</a></td><td>${moment(letter.at)}</td>
          <td>${letter.policy} <span class="quiet">${letter.version}</span></td><td>${letter.event_type}</td><td class="cut">${letter.detail ?? letter.outcome.replace("_", " ")}</td>
          <td class="right">${letter.attempts}${letter.poison && html` <${Badge} kind="bad">poison<//>`}</td></tr>`)}
      <//>`}`;
}

function Letter({ id }) {
  const { value, error } = usePoll(signal => call(`/dead-letters/${encodeURIComponent(id)}`, { signal }), 0, [id]);
  const [receipt, setReceipt] = useState(null);
  const retry = async () => { const answer = await call(`/dead-letters/${id}/retry`, { method: "POST" }); setReceipt(answer); return "Retried."; };
  const remove = async () => { await call(`/dead-letters/${id}`, { method: "DELETE" }); location.hash = "#/letters"; };
  return html`<p><a href="#/letters">All dead letters</a></p><h2>Dead letter ${id}</h2>
    ${error && html`<${Failure} error=${error} />`}${!value && !error && html`<${Loading} />`}
    ${value && html`<section class="card">
      <dl class="facts">${value.role
        ? html`<dt>Policy</dt><dd>${value.policy} <span class="quiet">${value.version}, ${value.role.toLowerCase()}</span></dd>`
        : html`<dt>${value.sink ? "Sink" : "Why"}</dt><dd>${value.sink} <span class="quiet">${value.detail}</span></dd>`}<dt>Event</dt><dd>${value.event_type} <code>${value.event_id}</code></dd>
        <dt>Kept</dt><dd>${moment(value.at)}</dd><dt>Attempts</dt><dd>${value.attempts}${value.poison && html` <${Badge} kind="bad">poison: retried only by itself<//>`}</dd></dl>
      ${value.fault && html`<${FaultView} fault=${value.fault} />`}
      ${value.event && html`<${Code} label="The event">${pretty(value.event)}<//>`}${value.message && html`<${Code} label="The message">${payload(value.message)}<//>`}
      ${value.readers?.length > 0 && html`<p>For ${value.readers.map(({ user }) => user).join(", ")}</p>`}
      <div class="row"><${Action} kind="primary" label="Retry" run=${retry} /><${Action} kind="danger" label="Delete" run=${remove} confirm=${`Delete dead letter ${id}? It can't be brought back.`} /></div>
    </section>`}
    ${receipt && html`<section class="card" role="status"><h3>The retry</h3><p>${receipt.policies.map(policy => html`${policy.name} <${Outcome} outcome=${policy.outcome} /> `)}${plural(receipt.recipients, "recipient")}, ${number(receipt.posted)} posted</p></section>`}`;
}

export function Sinks() {
  const { value, error } = usePoll(signal => call("/sinks", { signal }).catch(error => { if (error.status === 404) return { sinks: [] }; throw error; }), POLL_MS);
  const sinks = value && (Array.isArray(value) ? value : value.sinks ?? []);
  return html`<${Failure} error=${error} />
    ${!sinks ? !error && html`<${Loading} />` : sinks.length === 0 ? html`<${Empty}>No sinks are configured. A sink is a backend that reads, as users do: <code>[sinks.NAME]</code> in the configuration.<//>`
      : sinks.map(sink => html`<section class="card" key=${sink.name}><h2>${sink.name}</h2><dl class="facts">${Object.entries(sink).filter(([name]) => name !== "name").map(([name, value]) => html`<dt key=${name}>${name.replaceAll("_", " ")}</dt><dd>${value === null ? "–" : typeof value === "object" ? html`<code>${JSON.stringify(value)}</code>` : typeof value === "number" ? number(value) : String(value)}</dd>`)}</dl></section>`)}`;
}

export function Try() {
  const [type, setType] = useState("pooling.match.found");
  const [data, setData] = useState('{\n  "request_id": 42,\n  "rider_id": 1001,\n  "driver_id": 2002,\n  "pool_id": 7\n}');
  const [answer, setAnswer] = useState(null);
  const request = () => {
    try { JSON.parse(data); } catch (error) { throw new Error(`The data is not one JSON value: ${error.message}`); }
    // The data goes as it was typed, so that no number loses digits.
    return `{"type":${JSON.stringify(type)},"data":${data}}`;
  };
  const ask = async (query, word) => {
    setAnswer(null);
    setAnswer(await published(call(`/events?${query}`, { method: "POST", body: request() })));
    return word;
  };
  return html`
    <form class="card" onSubmit=${event => event.preventDefault()}>
      <label for="try-type">Event type</label><input id="try-type" value=${type} onInput=${event => setType(event.target.value)} spellcheck=${false} />
      <label for="try-data">Data, as JSON</label><textarea id="try-data" rows="8" value=${data} onInput=${event => setData(event.target.value)} spellcheck=${false}></textarea>
      <div class="row"><${Action} kind="primary" label="Dry run" run=${() => ask("dry_run=true", "Nothing was sent, and nothing has changed.")} />
        <${Action} label="Publish" run=${() => ask("explain=true", "Published.")} confirm=${`Publish this event of type ${type}? The users whom the policies choose are told.`} /></div>
    </form>
    ${answer && html`<section class="card" aria-label="What happens"><h2>${answer.explanation.dry_run ? "What would happen" : "What happened"}</h2><${Story} event=${answer} /></section>`}`;
}

export function Settings() {
  const { value, error } = usePoll(signal => call("/settings", { signal }), 0);
  const [text, setText] = useState("");
  const [isChanged, setIsChanged] = useState(false);
  if (!value) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  const found = value.filter(({ path, variable, source }) => (path.includes(text) || variable.includes(text.toUpperCase())) && (!isChanged || source !== "default"));
  return html`
    <form class="filters" role="search" onSubmit=${event => event.preventDefault()}>
      <label>Setting<input type="search" value=${text} onInput=${event => setText(event.target.value.trim())} /></label>
      <label class="check"><input type="checkbox" checked=${isChanged} onChange=${event => setIsChanged(event.target.checked)} />only those that are not defaults</label>
    </form>
    <p class="quiet" role="status">${plural(found.length, "setting")}. What may be a secret is hidden.</p>
    ${found.length === 0 ? html`<${Empty}>No setting is like that.<//>` : html`<${Table} caption="Settings" head=${["Setting", "Value", "From", "Environment variable"]}>
      ${found.map(({ path, value, source, variable }) => html`<tr key=${path}><td><code>${path}</code></td><td><code class="long">${JSON.stringify(value)}</code></td><td>${source === "default" ? html`<span class="quiet">default</span>` : html`<${Badge}>${source}<//>`}</td><td><code class="quiet">${variable}</code></td></tr>`)}<//>`}`;
}
