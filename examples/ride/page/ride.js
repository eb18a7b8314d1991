// The page of three people, each with a client of their own. What it shows follows from messages alone. At the start and after a gap it asks
// the backend for the whole state, which is a message too: a mailbox is ordered, so whatever comes after it is newer.

import { Signalpost } from "/signalpost-client/index.js";
import { sse } from "/signalpost-client/sse.js";

import { chat, element, idle, offers, route, seconds, waiting } from "/page/parts.js";

/** How often the driver's phone says where the car is. */
const POSITION_MS = 500;
/** How long the car takes for the whole street. `?street_ms=5000` is a fast one. */
const STREET_MS = Number(new URLSearchParams(location.search).get("street_ms") ?? 45_000);
const LOG_MAX = 40;
/** How long a driver may think: the policies `pooling` and `offers` have the same time. */
const OFFER_MS = 30_000;

const { server, places, riders, drivers, names } = await fetch("/settings").then((response) => response.json());
const token = (user) => async () => (await fetch(`/token?user=${user}`)).json();
const connect = (user) => new Signalpost(server, { user: String(user), token: token(user), fallback: sse });

/** Calls the backend, and returns what it says if it refuses. */
async function call(method, path, body) {
  const response = await fetch(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return response.ok ? undefined : (await response.json()).detail;
}

/** One person: what they know, and how it is shown. */
class Person {
  state = { ride: null, offers: [], pool: null, chat: [], fare: null, note: "" };

  constructor(id) {
    this.id = id;
    this.name = names[id];
    this.isDriver = drivers.includes(id);
    this.card = element("article", { className: "phone", id: `user-${id}`, ariaLabel: this.name });
    this.status = element("span", { className: "status" });
    const who = element("div", {}, element("h2", {}, this.name), element("p", {}, this.isDriver ? "drives" : "rides along"));
    const face = element("span", { className: `face ${this.isDriver ? "driver" : `rider-${riders.indexOf(id)}`}`, ariaHidden: "true" }, this.name[0]);
    this.body = element("div", { className: "body" });
    this.card.append(element("header", {}, face, who, this.status), this.body);
    this.client = connect(id);
    this.client.on("state", (state) => this.#connected(state));
    this.client.on("gap", () => this.load());
    this.client.on("message", ({ data }) => this.#hear(data));
    this.#connected(this.client.state);
    this.show();
    this.load();
  }

  load = () => call("POST", `/state?user=${this.id}`);

  #connected({ name }) {
    this.status.textContent = { open: "online", waiting: "offline", stopped: "offline" }[name] ?? name;
    this.status.dataset.state = name;
  }

  /** Each message changes what this person knows. */
  #hear(message) {
    const { state } = this;
    switch (message.type) {
      case "state":
        Object.assign(state, message, { offers: message.offers.map(until), note: "" });
        break;
      case "pooling_offer":
        state.offers = [...state.offers.filter(({ request_id }) => request_id !== message.request_id), until(message)];
        break;
      case "pooling_match":
        state.offers = state.offers.filter(({ request_id }) => request_id !== message.request_id);
        Object.assign(state, { pool: message.pool, note: this.isDriver ? "" : `${message.pool.driver} is on the way to you.` });
        break;
      case "pooling_accepted":
        state.pool = message.pool;
        if (!this.isDriver) state.note = `${names[message.by]} shares your ride.`;
        break;
      case "fare_updated":
        state.fare = message;
        break;
      case "trip_started":
        Object.assign(state.pool ?? {}, { status: "driving" });
        state.note = "The ride has begun.";
        break;
      case "driver_location":
        this.#moved(message.at);
        break;
      case "driver_arriving":
        state.note = `${message.kind === "in" ? "Picks up" : "Drops off"} ${message.rider} at ${message.place} in ${message.eta_s} s.`;
        break;
      case "trip_completed":
        Object.assign(state, { ride: null, pool: null, chat: [], note: `You have arrived. You pay ${price(state.fare)}.`, fare: null });
        break;
      case "refused":
        Object.assign(state, { ride: null, note: `Sorry, ${message.why}. Ask again.` });
        break;
      case "chat_message":
        state.chat = [...state.chat, message];
        break;
      default:
        return;
    }
    this.show();
  }

  /** The car has moved, perhaps past a place where somebody gets in or out. */
  #moved(at) {
    const { pool } = this.state;
    if (!pool) return;
    const stop = pool.stops.findLast((one) => one.at > pool.at && one.at <= at);
    if (stop) this.state.note = `${stop.rider === this.name ? "You get" : `${stop.rider} gets`} ${stop.kind} at ${stop.place}.`;
    Object.assign(pool, { at, status: "driving" });
  }

  // What this person does.

  async ask(pickup, dropoff) {
    const refused = await call("POST", "/rides", { rider_id: this.id, pickup, dropoff });
    Object.assign(this.state, refused ? { note: refused } : { ride: { pickup, dropoff }, note: "" });
    this.show();
  }

  async answer(offer, type) {
    await this.#send({ type, request_id: offer.request_id });
    this.state.offers = this.state.offers.filter((one) => one !== offer);
    this.show();
  }

  async write(text) {
    const { pool } = this.state;
    // Settled when it is stored: only then it is shown here too.
    if (await this.#send({ type: "chat", pool_id: pool.pool_id, text })) this.state.chat = [...this.state.chat, { from: this.id, text }];
    this.show();
  }

  async #send(message) {
    try {
      await this.client.send(message);
      return true;
    } catch (error) {
      this.state.note = error.detail ?? String(error);
    }
  }

  /** The car drives along the street, and the phone in it says where it is. */
  drive() {
    const { pool } = this.state;
    const begin = pool.at;
    const began = performance.now();
    const end = Math.max(...pool.stops.map(({ at }) => at));
    pool.status = "driving";
    const timer = setInterval(async () => {
      const at = Math.min(end, begin + (performance.now() - began) / STREET_MS);
      this.#moved(at);
      this.show();
      if (at >= end) clearInterval(timer);
      const refused = await call("POST", "/position", { driver_id: this.id, at });
      if (refused) clearInterval(timer);
      if (at >= end) {
        Object.assign(this.state, { pool: null, chat: [], note: "All riders have arrived." });
        this.show();
      }
    }, POSITION_MS);
    this.show();
  }

  // What is shown.

  show() {
    const { ride, pool, note, fare } = this.state;
    // What is being written outlives the elements that are replaced.
    const input = this.body.querySelector(".chat input");
    const hasFocus = input && document.activeElement === input;
    const draft = input?.value ?? "";
    const parts = [];
    if (note) parts.push(element("p", { className: "note", role: "status" }, note));
    if (pool) {
      const others = pool.riders.filter((name) => name !== this.name);
      const who = this.isDriver
        ? `With ${pool.riders.join(" and ")}`
        : `${pool.driver} drives${others.length ? `, with ${others.join(" and ")}` : ""}`;
      parts.push(element("div", { className: "ride" }, element("strong", {}, who), fare ? element("span", { className: "fare" }, price(fare)) : ""));
      parts.push(route(pool, places, this.isDriver ? undefined : this.name));
      if (this.isDriver && pool.status === "waiting")
        parts.push(element("button", { className: "main", onclick: () => this.drive() }, "Start driving"));
    }
    if (this.isDriver) {
      this.state.offers = this.state.offers.filter(({ until }) => until > Date.now());
      parts.push(...offers(this.state.offers, names, (offer, type) => this.answer(offer, type)));
      if (!pool && !this.state.offers.length)
        parts.push(element("p", { className: "empty" }, "No request yet. An offer appears here as soon as a rider asks."));
    } else if (!pool) {
      parts.push(ride ? waiting(ride) : idle(places, (...way) => this.ask(...way)));
    }
    if (pool) parts.push(chat(this.state.chat, this.id, names, draft, (text) => this.write(text)));
    this.body.replaceChildren(...parts);
    if (hasFocus) this.body.querySelector(".chat input")?.focus();
    const lines = this.body.querySelector(".lines");
    if (lines) lines.scrollTop = lines.scrollHeight;
  }
}

/** When a driver can't answer an offer any longer. */
const until = (offer) => ({ ...offer, until: Date.now() + (offer.left_ms ?? OFFER_MS) });
const price = (fare) => (fare ? new Intl.NumberFormat("en", { style: "currency", currency: fare.currency }).format(fare.amount) : "nothing");

// `?user=1001` shows one person, as their own phone would.
const alone = Number(new URLSearchParams(location.search).get("user"));
const shown = [...riders.slice(0, 1), ...drivers, ...riders.slice(1)].filter((id) => !alone || id === alone);
const people = shown.map((id) => new Person(id));
document.querySelector("#people").append(...people.map(({ card }) => card));
setInterval(() => people.filter(({ state }) => state.offers.length).forEach((person) => seconds(person.card) && person.show()), 1000);

if (alone) {
  document.querySelector("#backstage").remove();
} else {
  connect("backstage").on("message", ({ data: { way, type, about } }) => {
    const list = document.getElementById(way);
    list.prepend(element("li", {}, element("code", {}, type), " ", element("span", {}, about)));
    while (list.children.length > LOG_MAX) list.lastChild.remove();
  });
}
