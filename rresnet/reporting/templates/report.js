"use strict";
(() => {
  const data = JSON.parse(document.getElementById("rows-data").textContent);
  const byId = (id) => document.getElementById(id);
  const MOST_PRINTED = 1000;
  const columns = data.columns.map((column) => ({
    ...column,
    at: column.levels ? (row) => (column.codes[row] < 0 ? null : column.levels[column.codes[row]]) : (row) => column.values[row],
  }));
  const named = new Map(columns.map((column) => [column.name, column]));
  for (const column of columns) {
    column.numeric = (column.levels ?? column.values).every((value) => value === null || typeof value === "number");
  }
  const all = Array.from({ length: data.rows }, (_, row) => row);
  const state = { rows: all, page: 0, size: 25, sorted: null, up: true };

  const text = (value) => {
    if (value === null) return "";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    return String(Number(value.toPrecision(4)));
  };
  const shown = () => columns.filter((column) => column.shown);

  const element = (tag, attributes = {}, content = "") => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = content;
    return made;
  };

  const compare = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b));
  };

  const condition = (word) => {
    const parts = /^(\w+)(>=|<=|!=|=|>|<)(.*)$/.exec(word);
    const column = parts && named.get(parts[1]);
    if (parts && !column) state.unknown = parts[1];
    if (!column) {
      const sought = word.toLowerCase();
      return (row) => shown().some((one) => text(one.at(row)).toLowerCase().includes(sought));
    }
    const [, , sign, wanted] = parts;
    const number = Number(wanted);
    return (row) => {
      const value = column.at(row);
      if (sign === "=") return String(value ?? "").toLowerCase() === wanted.toLowerCase();
      if (sign === "!=") return String(value ?? "").toLowerCase() !== wanted.toLowerCase();
      if (value === null || Number.isNaN(number)) return false;
      return sign === ">" ? value > number : sign === "<" ? value < number : sign === ">=" ? value >= number : value <= number;
    };
  };

  const select = () => {
    state.unknown = null;
    const words = byId("filter").value.trim().split(/\s+/).filter(Boolean).map(condition);
    state.rows = all.filter((row) => words.every((holds) => holds(row)));
    if (state.sorted) {
      const { at } = named.get(state.sorted);
      const sign = state.up ? 1 : -1;
      state.rows.sort((a, b) => {
        const [one, other] = [at(a), at(b)];
        const order = compare(one, other);
        return one === null || other === null ? order : sign * order;
      });
    }
    state.page = 0;
    draw();
  };

  const heading = (column) => {
    const cell = element("th", { scope: "col", title: column.doc });
    if (column.numeric) cell.className = "number";
    const button = element("button", { type: "button" }, column.name.replaceAll("_", " "));
    if (state.sorted === column.name) cell.setAttribute("aria-sort", state.up ? "ascending" : "descending");
    button.addEventListener("click", () => {
      state.up = state.sorted === column.name ? !state.up : true;
      state.sorted = column.name;
      select();
      byId("all-rows").querySelector("th[aria-sort] button").focus();
    });
    cell.append(button);
    return cell;
  };

  const fill = (from, to) => {
    const head = element("thead"), body = element("tbody"), titles = element("tr"), used = shown();
    titles.append(...used.map(heading));
    head.append(titles);
    for (const row of state.rows.slice(from, to)) {
      const line = element("tr");
      for (const column of used) {
        const value = text(column.at(row));
        const cell = element("td", value.length > 30 ? { title: value } : {}, value);
        if (column.numeric) cell.className = "number";
        line.append(cell);
      }
      body.append(line);
    }
    byId("all-rows").replaceChildren(head, body);
  };

  const draw = () => {
    const from = state.page * state.size, to = Math.min(from + state.size, state.rows.length);
    fill(from, to);
    const count = (number) => number.toLocaleString("en");
    const of = state.rows.length === data.rows ? count(data.rows) : `${count(state.rows.length)} that match, of ${count(data.rows)}`;
    byId("rows-status").textContent = state.rows.length ? `Rows ${count(from + 1)} to ${count(to)} of ${of}` : `${state.unknown ? `No column ${state.unknown}: no` : "No"} row matches, of ${count(data.rows)}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = to >= state.rows.length;
  };

  const turn = (pages) => {
    state.page += pages;
    draw();
  };

  const csv = () => {
    const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const lines = [columns.map((column) => column.name)];
    for (const row of state.rows) lines.push(columns.map((column) => quoted(String(column.at(row) ?? ""))));
    return lines.map((line) => line.join(",")).join("\n");
  };

  byId("save-rows").addEventListener("click", () => {
    const link = element("a", { download: "rows.csv", href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  byId("filter").addEventListener("input", select);
  byId("page-size").addEventListener("change", (event) => {
    state.size = Number(event.target.value);
    state.page = 0;
    draw();
  });
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  for (const column of columns) {
    const label = element("label", { title: column.doc }), box = element("input", { type: "checkbox" });
    box.checked = column.shown;
    box.addEventListener("change", () => {
      column.shown = box.checked;
      select();
    });
    label.append(box, column.name.replaceAll("_", " "));
    byId("columns").append(label);
  }
  addEventListener("beforeprint", () => {
    fill(0, MOST_PRINTED);
    if (state.rows.length > MOST_PRINTED) byId("rows-status").textContent = `The first ${MOST_PRINTED} of ${state.rows.length} rows are printed.`;
  });
  addEventListener("afterprint", draw);

  if (data.rows) {
    byId("table-tools").hidden = byId("pager").hidden = false;
    select();
  } else {
    byId("all-rows").replaceWith(element("p", {}, "There are no rows."));
  }
})();
