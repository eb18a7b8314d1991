// The story of an event: what each policy decided, who was told, and what each class of their sessions sees.

import { html, useState } from "./vendor/preact-htm.js";
import { call } from "./api.js";
import { Action, Badge, Code, Empty, Table, link, micros, number, payload, plural, pretty } from "./ui.js";

const OUTCOMES = { routed: "good", refused: "warn", faulted: "bad", circuit_open: "bad" };

export const Outcome = ({ outcome }) => html`<${Badge} kind=${OUTCOMES[outcome] ?? ""}>${outcome.replace("_", " ")}<//>`;

export function FaultView({ fault }) {
  return html`<div class="fault"><p><${Badge} kind="bad">${fault.kind}<//> in <code>${fault.function}</code>${fault.version && html` of version ${fault.version}`}: ${fault.detail}</p>
    ${fault.backtrace?.length > 0 && html`<${Code} label="Backtrace">${fault.backtrace.map((name, n) => `${String(n).padStart(2)}  ${name}`).join("\n")}<//>`}</div>`;
}

const recipients = to => typeof to === "string" ? to : to.users ? to.users.join(", ") : to.group ? `group ${to.group}` : to.session ? `session ${to.session.session} of ${to.session.user}` : JSON.stringify(to);

function Delivery({ delivery, isDry }) {
  const terms = Object.entries(delivery.terms ?? {}).filter(([name, value]) => name !== "priority" || value !== "normal");
  return html`<section class="delivery">
    <h4>tells ${delivery.to.group ? html`<a href=${link("groups", delivery.to.group)}>group ${delivery.to.group}</a>` : recipients(delivery.to)}${delivery.except?.length > 0 && ` except ${delivery.except.join(", ")}`}</h4>
    ${terms.length > 0 && html`<p class="quiet">${terms.map(([name, value]) => `${name} ${value}`).join(", ")}</p>`}
    ${delivery.message ? html`<${Code} label="Message">${payload(delivery.message)}<//>` : html`<p class="quiet">The message is not shown: this key has no scope “operate”.</p>`}
    ${delivery.recipients.length > 0 && html`<${Table} caption="Who is told" head=${["User", "What happens", "Sessions"]}>
      ${delivery.recipients.map(to => html`<tr key=${to.user}><td><a href=${link("users", to.user)}>${to.user}</a></td>
        <td>${to.dropped ? html`<${Badge} kind="warn">dropped: ${to.dropped}<//>` : to.seq ? `seq ${number(to.seq)}` : isDry ? "would be posted" : "posted"}</td>
        <td>${to.sessions.length ? to.sessions.map(session => `${session.subprotocol ?? "plain"} [${session.class + 1}]`).join(", ") : html`<span class="quiet">none: it waits in the mailbox</span>`}</td></tr>`)}
    <//>`}
    ${delivery.more > 0 && html`<p class="quiet">and ${plural(delivery.more, "more recipient")}</p>`}
    ${delivery.formatting.length > 0 && delivery.classes.length > 0 && html`<p>Formatted by ${delivery.formatting.join(", then ")}:</p>
      <ol class="classes">${delivery.classes.map((seen, n) => html`<li key=${n}>
        <p class="quiet">[${n + 1}] ${Object.entries(seen.attributes).map(([name, value]) => `${name}=${value ?? "–"}`).join(" ") || "everybody"}
          ${seen.took?.length > 0 && ` · ${seen.took.map(({ name, took_us }) => `${name} ${micros(took_us)}`).join(", ")}`}</p>
        ${seen.dropped ? html`<${Badge} kind="warn">sees nothing: ${seen.dropped}<//>` : seen.sees && html`<${Code} label=${`What class ${n + 1} sees`}>${payload(seen.sees)}<//>`}</li>`)}</ol>`}
  </section>`;
}

const Groups = ({ verb, list }) => list?.length > 0 && html`<p>${verb} ${list.map(item => typeof item === "string" ? item : `${item.group}: ${item.user}`).join(" · ")}</p>`;

const STATES = { acked: "good", sent: "good", stored: "", posted: "" };

/** Tells how far the messages of an event got, when it is asked. */
function Afterwards({ id, source }) {
  const [told, setTold] = useState(null);
  const load = async () => { setTold(await call(`/receipts/${encodeURIComponent(id)}?${new URLSearchParams({ limit: 50, ...(source ? { source } : {}) })}`)); return ""; };
  return html`<section><h3>Afterwards</h3>
    <${Action} label=${told ? "Ask again" : "How far did the messages get?"} run=${load} />
    ${told?.note && html`<p>${told.note}</p>`}
    ${told?.recipients.length > 0 && html`<${Table} caption="How far the messages got" head=${["User", "State", { number: "Seq" }]}>
      ${told.recipients.map(({ user, seq, state, reason }, n) => html`<tr key=${n}><td><a href=${link("users", user)}>${user}</a></td><td><${Badge} kind=${STATES[state] ?? "warn"}>${state}<//> ${reason}</td><td class="right">${seq === undefined ? "–" : number(seq)}</td></tr>`)}<//>`}
    ${told?.next !== undefined && told && html`<p class="quiet">and more recipients</p>`}
  </section>`;
}

/** Tells an explanation: an entry of the live feed, or the answer to a dry run. */
export function Story({ event }) {
  const { explanation } = event;
  return html`<div class="story">
    <dl class="facts">
      <dt>Id</dt><dd><code>${event.id}</code></dd>
      ${event.source && html`<dt>Source</dt><dd><code>${event.source}</code></dd>`}
      <dt>Outcome</dt><dd>${event.duplicate ? html`<${Badge} kind="warn">duplicate<//> nothing was done` : html`${plural(event.recipients, "recipient")}, ${number(event.posted)} posted`}
        ${event.dropped?.map(({ reason, count }) => html` <${Badge} kind="warn">${count} dropped: ${reason}<//>`)}</dd>
      ${event.joins_refused > 0 && html`<dt>Limits</dt><dd>${plural(event.joins_refused, "join")} refused</dd>`}
      ${event.note && html`<dt>Note</dt><dd>${event.note}</dd>`}
    </dl>
    ${event.policies.length === 0 && explanation?.policies.length === 0 && html`<${Empty}>No policy was asked.<//>`}
    ${(explanation?.policies ?? []).map((policy, n) => {
      const consulted = event.policies.find(({ name }) => name === policy.name) ?? event.policies[n];
      return html`<section class="policy" key=${policy.name + n}>
        <h3>${policy.name} ${policy.version && html`<span class="quiet">${policy.version}</span>`} ${consulted && html`<${Outcome} outcome=${consulted.outcome} />`} ${policy.took_us > 0 && html`<span class="quiet">${micros(policy.took_us)}</span>`}</h3>
        ${consulted?.refusal && html`<p>Refused: <code>${consulted.refusal.code}</code> ${consulted.refusal.detail}</p>`}
        ${consulted?.fault && html`<${FaultView} fault=${consulted.fault} />`}
        ${consulted?.dead_letter && html`<p>Kept as <a href="#/letters">dead letter ${consulted.dead_letter}</a>.</p>`}
        <${Groups} verb="Joins" list=${policy.joins} />
        ${policy.deliveries.map((delivery, m) => html`<${Delivery} key=${m} delivery=${delivery} isDry=${explanation.dry_run} />`)}
        ${policy.more > 0 && html`<p class="quiet">and ${plural(policy.more, "more delivery", "more deliveries")}</p>`}
        <${Groups} verb="Leaves" list=${policy.leaves} />
        <${Groups} verb="Ends" list=${policy.ends} />
      </section>`;
    })}
    ${explanation && !explanation.dry_run && event.recipients > 0 && html`<${Afterwards} key=${event.id} id=${event.id} source=${event.source} />`}
    ${event.event && html`<section><h3>The event</h3><${Code} label="The event">${pretty(event.event)}<//></section>`}
  </div>`;
}
