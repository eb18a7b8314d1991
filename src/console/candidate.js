// A policy's candidate: another version on trial beside it, how it compares, and the buttons that end the trial.

import { html } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import { Action, Badge, Code, Failure, Loading, micros, moment, number, percent, plural, usePoll } from "./ui.js";
import { FaultView } from "./story.js";

const STATES = { on_trial: "good", serves: "good", refused: "bad", returned: "bad", dropped: "" };
/** How loud it says why it would not be promoted. */
const NOTICES = { on_trial: "notice warn", refused: "notice bad", returned: "notice bad" };
/** A candidate in these states can still be dropped. */
const DROPPABLE = ["on_trial", "refused", "returned"];
const KINDS = {
  outcome: "decides or refuses", audience: "who is told", message: "what they are told", terms: "for how long and how it is kept", groups: "who joins and leaves",
  replies: "what a client is answered", events: "what is published", fault: "one of the two faults",
};

function Calls({ mode, calls }) {
  const faults = html`<span class=${calls.faults ? "bad" : ""}>${plural(calls.faults, "fault")}</span>`;
  if (mode === "canary") return html`<dt>Decided</dt><dd>${plural(calls.decided, "call")}, ${plural(calls.refusals, "refusal")}, ${faults}</dd>`;
  return html`<dt>Compared</dt><dd>${plural(calls.compared, "call")}: ${number(calls.same)} same, <span class=${calls.differ ? "bad" : ""}>${number(calls.differ)} differ</span>, ${faults}${" "}<span class="quiet">· ${number(calls.inconclusive)} inconclusive, ${number(calls.skipped)} skipped</span></dd>`;
}

const Example = ({ example: { at, function: name, event_type, event, lines } }) => html`<li>
  <p class="quiet"><code>${name}</code> ${event_type} ${event && html`<code>${event}</code>`} ${moment(at)}</p>
  <${Code} label=${`${name} ${event_type ?? ""}: live ≠ candidate`}>${lines.join("\n")}<//></li>`;

function Difference({ kind, difference: { calls, examples } }) {
  const shown = html`<${Badge} kind=${kind === "fault" ? "bad" : "warn"}>${kind}<//> ${plural(calls, "call")} <span class="quiet">${KINDS[kind]}</span>`;
  if (!examples) return html`<p>${shown}</p>`;
  // Each is one of the newest of all those calls, which gives it its number. The newest come last, and are shown first.
  const rows = examples.map((example, index) => html`<${Example} key=${calls - examples.length + index} example=${example} />`);
  return html`<details class="difference"><summary>${shown}</summary><ul class="examples">${rows.reverse()}</ul></details>`;
}

export function Candidate({ policy, changed }) {
  const path = `/policies/${encodeURIComponent(policy)}/candidate`;
  const { value, error, reload } = usePoll(signal => call(path, { signal }), 1000, [policy]);
  const done = say => async answer => { reload(); changed(); return say(await answer); };
  if (!value) return html`<section class="candidate"><h3>Candidate</h3>${error ? html`<${Failure} error=${error} />` : html`<${Loading} />`}</section>`;
  const { candidate, live, mode, share, state, since, file, calls, times, differences, unfit, last_fault } = value;
  const kinds = Object.entries(differences), is_hidden = kinds.some(([, { examples }]) => !examples);
  const refused = `unfit-${policy}`;
  return html`<section class="candidate" aria-label=${`Candidate of ${policy}`}>
    <div class="row spread"><h3>Candidate <span class="quiet">${candidate.version}</span></h3><span><${Badge}>${mode}<//> <${Badge} kind=${STATES[state]}>${state.replace("_", " ")}<//></span></div>
    <${Failure} error=${error} />
    <dl class="facts">
      <dt>Share</dt><dd>${percent(share)} <span class="quiet">of the ${mode === "canary" ? "events" : "calls"}, since ${moment(since)}</span></dd>
      <dt>File</dt><dd>${candidate.digest && html`<code title=${candidate.digest}>${candidate.digest.slice(0, 16)}…</code> `}<span class="quiet">${file}</span></dd>
      ${state !== "refused" && html`<${Calls} mode=${mode} calls=${calls} />`}
      ${times.live?.calls > 0 && html`<dt>Time</dt><dd>p50 ${micros(times.live.p50_us)} → ${micros(times.candidate.p50_us)}, p99 ${micros(times.live.p99_us)} → ${micros(times.candidate.p99_us)} <span class="quiet">of the same calls, live → candidate</span></dd>`}
    </dl>
    ${calls.compared > 0 && kinds.length === 0 && html`<p class="quiet">No call has differed.</p>`}
    ${kinds.map(([kind, difference]) => html`<${Difference} key=${kind} kind=${kind} difference=${difference} />`)}
    ${is_hidden && html`<p class="quiet">Examples are not shown: this key has no scope “operate”.</p>`}
    ${last_fault && html`<h4>Last fault <span class="quiet">${moment(last_fault.at)}${last_fault.event && ` · event ${last_fault.event}`}</span></h4><${FaultView} fault=${last_fault} />`}
    ${unfit && html`<p class=${NOTICES[state] ?? "quiet"} id=${refused}>${state === "on_trial" ? "It would not be promoted: it" : "It"} ${unfit}.</p>`}
    <div class="row">
      <${Action} kind="primary" label="Promote" disabled=${Boolean(unfit)} describedBy=${unfit ? refused : undefined} run=${() => done(({ version, revision }) => `${version} serves, in revision ${revision}.`)(call(`${path}/promote`, { method: "POST" }))}
        confirm=${`Promote ${policy} ${candidate.version}? Its file takes the place of version ${live.version}, and it decides about everything from now on.`} />
      <${Action} kind="danger" label="Drop" disabled=${!DROPPABLE.includes(state)} run=${() => done(() => "Dropped.")(call(path, { method: "DELETE" }))}
        confirm=${`Drop the candidate of ${policy}? It is tried again when its file or its configuration changes, or after a restart.`} />
    </div>
  </section>`;
}
