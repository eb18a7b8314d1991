// What the pages share: polling, numbers and times in words, tables, dialogs, and charts.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Problem } from "./api.js";

/** Repeats `load` while the page is visible. Returns the newest result, the newest error, and a function that loads now. */
export function usePoll(load, everyMs, dependencies = []) {
  const [state, setState] = useState({});
  const again = useRef(() => {});
  useEffect(() => {
    let isOver = false, timer;
    const abort = new AbortController();
    const run = async () => {
      clearTimeout(timer);
      if (!document.hidden) {
        try {
          const value = await load(abort.signal);
          if (isOver) return;
          setState({ value });
        } catch (error) {
          if (isOver || error.name === "AbortError") return;
          setState(old => ({ value: old.value, error }));
        }
      }
      if (everyMs) timer = setTimeout(run, everyMs);
    };
    again.current = run;
    setState({});
    run();
    const shown = () => { if (!document.hidden) run(); };
    document.addEventListener("visibilitychange", shown);
    return () => {
      isOver = true;
      clearTimeout(timer);
      abort.abort();
      document.removeEventListener("visibilitychange", shown);
    };
  }, dependencies);
  return { ...state, reload: () => again.current() };
}

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
export const number = value => value === undefined || value === null ? "–" : value < 100_000 ? whole.format(Math.round(value)) : short.format(value);
export const bytes = value => value < 1000 ? `${Math.round(value)} B` : `${short.format(value).replace(/([A-Z])$/, " $1")}B`;
export const micros = value => value < 1000 ? `${number(value)} µs` : `${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} ms`;
export const percent = share => `${Number((share * 100).toPrecision(3))} %`;
export const time = text => text ? text.slice(11, 19) : "";
export const moment = text => text.replace("T", " ").slice(0, 19);
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
export const pretty = value => JSON.stringify(value, null, 2);
export const link = (page, name) => `#/${page}/${encodeURIComponent(name)}`;

/** Returns a payload as text: JSON with its digits, text, or base64. */
export function payload(body) {
  if (body === undefined || body === null) return null;
  if ("json" in body) return pretty(body.json);
  return body.text ?? `base64 ${body.base64}`;
}

export function Failure({ error, what = "This could not be loaded" }) {
  if (!error) return null;
  const code = error instanceof Problem && error.code !== "unreachable" ? html` <code>${error.code}</code>` : null;
  return html`<p class="notice bad" role="alert"><strong>${what}.</strong> ${error.message}${code}</p>`;
}

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;
export const Loading = () => html`<p class="empty" aria-busy="true">Loading…</p>`;
export const Badge = ({ kind = "", children }) => html`<span class="badge ${kind}">${children}</span>`;
export const Code = ({ label, children }) => html`<pre tabindex="0" role="region" aria-label=${label}>${children}</pre>`;

/** A real table that scrolls by itself if it is wider than the page. */
export function Table({ caption, head, children }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}><table>
    <caption class="hidden">${caption}</caption>
    <thead><tr>${head.map(cell => typeof cell === "string" ? html`<th scope="col">${cell}</th>` : html`<th scope="col" class="right">${cell.number}</th>`)}</tr></thead>
    <tbody>${children}</tbody>
  </table></div>`;
}

/** A button that runs something, and says how it ended. `confirm` is asked in a dialog first. */
export function Action({ label, run, confirm, kind = "", disabled = false, describedBy }) {
  const [state, setState] = useState("");
  const dialog = useRef();
  const start = async () => {
    setState("busy");
    try { setState((await run()) ?? "Done."); } catch (error) { setState(error); }
  };
  const said = state instanceof Error ? html`<span class="said bad" role="alert">${state.message}</span>`
    : html`<span class="said" role="status">${state === "busy" ? "…" : state}</span>`;
  return html`<span class="action">
    <button class=${kind} disabled=${disabled || state === "busy"} aria-describedby=${describedBy} onClick=${() => confirm ? dialog.current.showModal() : start()}>${label}</button>${said}
    ${confirm && html`<dialog ref=${dialog} aria-label=${label}><p>${confirm}</p><div class="row">
      <button class=${kind || "primary"} onClick=${() => { dialog.current.close(); start(); }}>${label}</button><button onClick=${() => dialog.current.close()}>Cancel</button></div></dialog>`}
  </span>`;
}

const WIDTH = 600, HEIGHT = 120;

/** A line chart of the last minutes. `series`: name and values each; `show` writes a value. The arrow keys move along it, and a table is behind it. */
export function Chart({ title, at, series, show = number }) {
  const [hovered, setHovered] = useState(null);
  const count = at.length;
  const highest = series.reduce((most, { values }) => values.reduce((a, b) => a > b ? a : b, most), 0);
  const top = nice(highest);
  const x = index => count < 2 ? WIDTH : index * WIDTH / (count - 1);
  const y = value => HEIGHT - value / top * (HEIGHT - 4);
  const line = values => thin(values).map(([index, value], n) => `${n ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const index = hovered === null ? count - 1 : Math.min(hovered, count - 1);
  const clock = ms => new Date(ms).toLocaleTimeString("en-GB");
  const move = event => {
    const box = event.currentTarget.getBoundingClientRect();
    setHovered(Math.max(0, Math.min(count - 1, Math.round((event.clientX - box.left) / box.width * (count - 1)))));
  };
  const press = event => {
    const step = { ArrowLeft: -10, ArrowRight: 10, Home: -count, End: count }[event.key];
    if (!step) return;
    event.preventDefault();
    setHovered(Math.max(0, Math.min(count - 1, index + step)));
  };
  const now = series.map(({ name, values }) => `${name} ${show(values[index] ?? 0)}`).join(", ");
  return html`<figure class="chart">
    <figcaption><h3>${title}</h3><span class="when">${count ? hovered === null ? "now" : clock(at[index]) : ""}</span></figcaption>
    <ul class="legend">${series.map(({ name, values }, n) => html`<li key=${name}><i class="swatch s${n}"></i>${name} <b>${count ? show(values[index] ?? 0) : "–"}</b></li>`)}</ul>
    <div class="plot" tabindex="0" role="slider" aria-label=${`${title}, the last 15 minutes`} aria-valuemin="0" aria-valuemax=${Math.max(count - 1, 0)}
      aria-valuenow=${Math.max(index, 0)} aria-valuetext=${count ? `${clock(at[index])}: ${now}` : "no samples yet"}
      onPointerMove=${move} onPointerLeave=${() => setHovered(null)} onBlur=${() => setHovered(null)} onKeyDown=${press}>
      <span class="top">${show(top)}</span>
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" aria-hidden="true">
        <path class="grid" d="M0 4H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT}H${WIDTH}"/>
        ${series.map(({ name, values }, n) => html`<path key=${name} class="line s${n}" d=${line(values)}/>`)}
        ${hovered !== null && html`<path class="cursor" d="M${x(index)} 0V${HEIGHT}"/>`}
      </svg>
      <span class="axis"><span>${count ? clock(at[0]) : ""}</span><span>${count ? clock(at[count - 1]) : ""}</span></span>
    </div>
    <details><summary>As a table</summary><${Table} caption=${`${title}, by minute`} head=${["Minute", ...series.map(({ name }) => ({ number: `${name}, highest` }))]}>
      ${minutes(at).map(([minute, from, to]) => html`<tr key=${minute}><td>${minute}</td>${series.map(({ name, values }) => html`<td key=${name} class="right">${show(Math.max(0, ...values.slice(from, to)))}</td>`)}</tr>`)}
    <//></details>
  </figure>`;
}

/** Returns a round number that is not below. */
function nice(value) {
  if (value <= 4) return 4;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map(factor => factor * unit).find(top => top >= value);
}

/** Returns at most 300 points, the highest of each neighbourhood, so that no peak is lost. */
function thin(values) {
  const size = Math.ceil(values.length / 300);
  const points = [];
  for (let from = 0; from < values.length; from += size) {
    let highest = from;
    for (let index = from; index < Math.min(from + size, values.length); index += 1) if (values[index] > values[highest]) highest = index;
    points.push([highest, values[highest]]);
  }
  return points;
}

/** Returns the minutes, the newest first, each with the range of its samples. */
function minutes(at) {
  const found = [];
  at.forEach((ms, index) => {
    const minute = new Date(ms).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
    if (found[0]?.[0] === minute) found[0][2] = index + 1;
    else found.unshift([minute, index, index + 1]);
  });
  return found;
}
