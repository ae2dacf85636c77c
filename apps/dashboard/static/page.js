// Keeps the page up to date: fetches it again every so often, and changes what has changed, in place, so that focus,
// selection and open panels stay. Forms are sent without leaving the page. Without this script a reload does the same.
"use strict";
(() => {
  const page = document.getElementById("page");
  const live = document.getElementById("live");
  const interval = 1000 * Number(page.dataset.seconds);
  const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);
  const alike = (one, other) => one.nodeName === other.nodeName && key(one) === key(other);
  const isThePersons = (node, name) => node.nodeName === "DETAILS" && name === "open";

  function change(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes])
      if (!fresh.hasAttribute(name) && !isThePersons(old, name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes)
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    let place = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      let match = place;
      // what has no key is not looked for beyond what has one, which would be lost
      while (match && !alike(match, child)) match = !key(child) && key(match) ? null : match.nextSibling;
      if (!match) {
        old.insertBefore(child, place);
        continue;
      }
      for (; place !== match; ) {
        const gone = place;
        place = place.nextSibling;
        gone.remove();
      }
      change(match, child);
      place = match.nextSibling;
    }
    while (place) {
      const gone = place;
      place = place.nextSibling;
      gone.remove();
    }
  }

  function say(text, isBad) {
    if (live.textContent !== text) live.textContent = text;
    live.classList.toggle("bad", isBad);
  }

  let updates = Promise.resolve();
  function update() {
    updates = updates.then(async () => {
      try {
        const response = await fetch(location.pathname, { signal: AbortSignal.timeout(20000) });
        const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
        const content = fresh.getElementById("page");
        if (!content) throw new Error(response.statusText);
        change(page, content);
        document.title = fresh.title;
        say("live", false);
      } catch (error) {
        say("the dashboard does not answer; what you see may be old", true);
      }
    });
    return updates;
  }

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.matches("form[data-inplace]")) return;
    event.preventDefault();
    try {
      const body = new URLSearchParams(new FormData(form));
      const response = await fetch(form.action, { method: "POST", body });
      if (response.ok) {
        const panel = form.closest("details");
        if (panel) {
          panel.open = false;
          panel.querySelector("summary").focus();
        }
        await update();
      } else {
        const answer = new DOMParser().parseFromString(await response.text(), "text/html");
        say((answer.querySelector(".notice") ?? answer.body).textContent, true);
      }
    } catch (error) {
      say("the dashboard does not answer; nothing may have happened", true);
    }
  });

  document.addEventListener("visibilitychange", () => document.hidden || update());
  say("live", false);
  setInterval(() => document.hidden || update(), interval);
})();
