document.addEventListener("play", e => {
  for (const a of document.querySelectorAll("audio")) if (a !== e.target) a.pause();
}, true);
addEventListener("beforeprint", () => document.querySelectorAll("details.thought").forEach(d => d.open = true));
