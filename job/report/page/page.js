"use strict";
// Finds answers by what they say and by how they turned out. Without scripts all of them are shown.
for (const box of document.querySelectorAll("[data-answers]")) {
  const most = Number(box.dataset.answers);
  const answers = Array.from(box.querySelectorAll(".answer"));
  const words = box.querySelector("input"), kind = box.querySelector("select");
  const count = box.querySelector("output"), all = box.querySelector("button");
  let whole = answers.length <= most;
  const show = () => {
    const wanted = words.value.toLowerCase(), state = kind ? kind.value : "";
    const narrowed = wanted !== "" || state !== "";
    let found = 0;
    for (const answer of answers) {
      const fits = answer.textContent.toLowerCase().includes(wanted) && (state === "" || answer.dataset.state === state);
      found += fits ? 1 : 0;
      const later = !narrowed && !whole && found > most;
      answer.classList.toggle("later", later);
      answer.hidden = !fits || later;
    }
    count.textContent = narrowed ? `${found} of ${answers.length}` : "";
    all.hidden = narrowed || whole;
  };
  box.querySelector(".find").hidden = false;
  words.addEventListener("input", show);
  if (kind) kind.addEventListener("change", show);
  all.addEventListener("click", () => { whole = true; show(); });
  show();
}
