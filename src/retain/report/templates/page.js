for (const paragraph of document.querySelectorAll(".copies")) {
  paragraph.hidden = false;
  paragraph.addEventListener("click", async ({ target }) => {
    const text = target.dataset.copy;
    if (text === undefined) return;
    const status = paragraph.querySelector("[role=status]");
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = "Copied.";
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      status.textContent = document.execCommand("copy") ? "Copied." : "The browser does not allow it.";
      area.remove();
      target.focus();
    }
  });
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const key = (row) => row.cells[place].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        if (place === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
        if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
        return sign * (key(a) - key(b));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
