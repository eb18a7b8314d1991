// The console: its pages, the key, and which page the address names.

import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { key, onUnauthorized } from "./api.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { Group, Letters, Policies, Settings, Sinks, Try, Users } from "./pages.js";

const PAGES = [
  ["overview", "Overview", Overview], ["live", "Live", Live], ["users", "Users", Users], ["policies", "Policies", Policies],
  ["letters", "Dead letters", Letters], ["sinks", "Sinks", Sinks], ["try", "Try", Try], ["settings", "Settings", Settings],
];

/** Pages that others link to. */
const FURTHER = [["groups", "Group", Group]];

const named = () => location.hash.replace(/^#\/?/, "").split("/").map(part => { try { return decodeURIComponent(part); } catch { return part; } });

function KeyForm({ wasShown, done }) {
  const input = useRef();
  useEffect(() => input.current.focus(), []);
  const take = event => {
    event.preventDefault();
    key.set(input.current.value.trim());
    done();
  };
  return html`<form class="key card" onSubmit=${take}>
    <h1>${wasShown ? "This key is not accepted" : "A key is needed"}</h1>
    <p>This server asks operators for an API key. With the scope <code>read</code> the console shows what happens; with <code>operate</code> also payloads, and it can change things.</p>
    <label for="key">API key</label>
    <input id="key" ref=${input} type="password" autocomplete="off" spellcheck=${false} required />
    <button class="primary">Use it in this tab</button>
    <p class="quiet">It is kept until the tab is closed. <code>signalpost token --api-key NAME --scope read --scope operate</code> makes one.</p>
  </form>`;
}

function App() {
  const [place, setPlace] = useState(named());
  const [isAsked, setIsAsked] = useState(false);
  const [generation, setGeneration] = useState(0);
  const heading = useRef();
  useEffect(() => {
    const moved = () => { setPlace(named()); heading.current?.focus(); scrollTo(0, 0); };
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => onUnauthorized(() => setIsAsked(true)), []);
  const [name, title, Page] = [...PAGES, ...FURTHER].find(([name]) => name === place[0]) ?? PAGES[0];
  useEffect(() => {
    document.title = `${title} · Signalpost`;
    document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [title]);
  return html`
    <a class="skip" href="#main" onClick=${event => { event.preventDefault(); heading.current?.focus(); }}>Skip to the content</a>
    <header>
      <a class="brand" href="#/overview"><img src="icon.svg" alt="" width="24" height="24" />Signalpost</a>
      <nav aria-label="Pages"><ul>${PAGES.map(([page, label]) => html`<li key=${page}><a href=${`#/${page}`} aria-current=${page === name ? "page" : undefined}>${label}</a></li>`)}</ul></nav>
      ${key.get() && html`<button class="forget" onClick=${() => { key.forget(); setGeneration(generation + 1); }}>Forget the key</button>`}
    </header>
    <main id="main">
      ${isAsked
        ? html`<${KeyForm} wasShown=${Boolean(key.get())} done=${() => { setIsAsked(false); setGeneration(generation + 1); }} />`
        : html`<h1 ref=${heading} tabindex="-1">${title}</h1><${Page} key=${name + generation} selected=${place[1]} />`}
    </main>`;
}

render(html`<${App} />`, document.getElementById("app"));
