// What a phone shows, made of elements. Text is always text, so what somebody writes is never markup.

/** Makes an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/** A form that asks for a ride. */
export function idle(places, ask) {
  const names = Object.keys(places);
  const select = (label, options, chosen) => {
    const field = element("select", {}, ...options.map((name) => element("option", { selected: name === chosen }, name)));
    return [field, element("label", {}, label, field)];
  };
  const [from, fromLabel] = select("From", names.slice(0, -1), names[0]);
  const [to, toLabel] = select("To", names.slice(1), names.at(-1));
  const form = element("form", { className: "ask" }, fromLabel, toLabel, element("button", { className: "main" }, "Request a ride"));
  form.onsubmit = (event) => {
    event.preventDefault();
    ask(from.value, to.value);
  };
  return form;
}

/** A request that nobody has answered yet. */
export function waiting({ pickup, dropoff }) {
  return element(
    "div",
    { className: "waiting" },
    element("span", { className: "pulse", ariaHidden: "true" }),
    element("p", {}, `${pickup} to ${dropoff}: looking for a driver …`),
  );
}

/** The offers of a driver, each with its buttons. */
export function offers(list, names, answer) {
  return list.map((offer) => {
    const button = (text, type, className) => element("button", { className, onclick: () => answer(offer, type) }, text);
    const left = element("span", { className: "left" }, `${Math.max(0, Math.ceil((offer.until - Date.now()) / 1000))} s`);
    left.dataset.until = offer.until;
    return element(
      "div",
      { className: "offer" },
      element("p", {}, element("strong", {}, names[offer.rider_id]), ` asks for a ride`, left),
      element("p", { className: "way" }, `${offer.pickup} → ${offer.dropoff}`),
      element("div", { className: "buttons" }, button("Accept", "offer_accept", "main"), button("Decline", "offer_decline", "")),
    );
  });
}

/** Shows how long each offer lasts. Returns whether one is over. */
export function seconds(card) {
  let isOver = false;
  for (const left of card.querySelectorAll("[data-until]")) {
    const ms = left.dataset.until - Date.now();
    isOver ||= ms <= 0;
    left.textContent = `${Math.max(0, Math.ceil(ms / 1000))} s`;
  }
  return isOver;
}

/** The street with its places, who gets in and out where, and the car. */
export function route(pool, places, own) {
  const percent = (at) => `${(at * 100).toFixed(1)}%`;
  const stops = Object.entries(places).map(([place, at]) => {
    const here = pool.stops.filter((stop) => stop.place === place);
    const stop = element("li", {
      className: [here.length ? "used" : "", here.some(({ rider }) => rider === own) ? "own" : "", pool.at >= at ? "passed" : ""].join(" "),
    });
    stop.style.setProperty("--at", percent(at));
    const who = here.map(({ kind, rider }) =>
      element("small", { title: `${rider} gets ${kind}` }, `${kind === "in" ? "↑" : "↓"} ${rider === own ? "you" : rider}`),
    );
    stop.append(element("span", {}, place), ...who);
    return stop;
  });
  const car = element("i", { className: "car", title: "the car" });
  const track = element(
    "div",
    { className: "route", role: "img", ariaLabel: `The car has done ${Math.round(pool.at * 100)} % of the street` },
    element("ol", {}, ...stops),
    car,
  );
  track.dataset.at = pool.at;
  track.style.setProperty("--car", percent(pool.at));
  return track;
}

/** What those in the car write to each other. */
export function chat(lines, own, names, draft, write) {
  const list = element(
    "ul",
    { className: "lines", tabIndex: 0, ariaLabel: "Messages" },
    ...lines.map(({ from, text }) =>
      element("li", { className: from === own ? "own" : "" }, element("b", {}, from === own ? "you" : names[from]), " ", text),
    ),
  );
  const input = element("input", { value: draft, placeholder: "Write to the others", ariaLabel: "Message", maxLength: 200, autocomplete: "off" });
  const form = element("form", {}, input, element("button", {}, "Send"));
  form.onsubmit = (event) => {
    event.preventDefault();
    const text = input.value.trim();
    input.value = "";
    if (text) write(text);
  };
  return element("div", { className: "chat" }, list, form);
}
