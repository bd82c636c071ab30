"use strict";
// Builds the page from /openapi.json with DOM calls only: no text of the document is ever parsed as HTML.
(async () => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const prose = (text) => text.split(/(`[^`]+`)/).map((part) =>
    part.startsWith("`") && part.endsWith("`") && part.length > 2 ? make("code", {}, part.slice(1, -1)) : part);
  const main = $("main");

  let spec;
  try {
    const response = await fetch("/openapi.json");
    if (!response.ok) throw new Error("HTTP " + response.status);
    spec = await response.json();
  } catch (error) {
    main.replaceChildren(make("p", { class: "error" }, "/openapi.json could not be read: " + error.message));
    return;
  }

  const nameOf = (ref) => ref.slice(ref.lastIndexOf("/") + 1);
  const typeOf = (schema) => {
    if (!schema || Object.keys(schema).length === 0) return ["any JSON"];
    if (schema.$ref) return [make("a", { href: "#schema-" + nameOf(schema.$ref) }, nameOf(schema.$ref))];
    const many = schema.anyOf || schema.oneOf;
    if (many) return many.flatMap((one, at) => (at ? [" | ", ...typeOf(one)] : typeOf(one)));
    if (schema.type === "array") return ["array of ", ...typeOf(schema.items)];
    if (schema.enum) return [schema.enum.join(" | ")];
    if (schema.type === "object" && schema.additionalProperties && typeof schema.additionalProperties === "object")
      return ["map of ", ...typeOf(schema.additionalProperties)];
    return [Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type || "any JSON"];
  };
  const row = (...cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, ...[].concat(cell))));
  const fold = (title, open, ...children) =>
    make("details", open ? { open: "" } : {}, make("summary", {}, title), make("div", {}, ...children));

  const example = (schema, depth = 0) => {
    if (!schema || depth > 3) return {};
    if (schema.$ref) return example(spec.components.schemas[nameOf(schema.$ref)], depth + 1);
    if (schema.oneOf || schema.anyOf) return example((schema.oneOf || schema.anyOf)[0], depth);
    if (schema.properties) {
      const required = schema.required || [];
      const shown = required.length ? required : Object.keys(schema.properties);
      return Object.fromEntries(shown.map((name) => [name, example(schema.properties[name], depth + 1)]));
    }
    return { string: "…", integer: 1, number: 1, boolean: false, array: [], null: null }[schema.type] ?? {};
  };
  const curl = (verb, path, operation) => {
    const lines = ["curl" + (verb === "get" ? "" : " -X " + verb.toUpperCase()) + " '" + location.origin + path + "'"];
    if (!operation.security) lines.push("  -H \"Authorization: Bearer $MILEPOST_TOKEN\"");
    if (operation.requestBody) {
      const body = path === "/jobs" ? { kind: "echo", input: { hello: "world" } }
        : example(operation.requestBody.content["application/json"].schema);
      lines.push("  -H 'Content-Type: application/json'", "  -d '" + JSON.stringify(body) + "'");
    }
    return lines.join(" \\\n");
  };
  const shell = (text) => {
    const button = make("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    return make("div", { class: "shell" }, make("pre", {}, text), button);
  };

  const card = (verb, path, operation) => {
    const parts = [
      make("div", { class: "op" }, make("span", { class: "verb " + verb }, verb.toUpperCase()), make("span", { class: "path" }, path)),
      make("p", { class: "say" }, ...prose(operation.summary + "."), operation.description
        ? make("small", {}, ...prose(operation.description)) : null),
    ];
    if (operation.parameters.length)
      parts.push(fold("Parameters", true, make("table", {}, make("tbody", {}, ...operation.parameters.map((one) => row(
        [make("code", {}, one.name), one.required ? make("span", { class: "must" }, "required") : ""],
        make("span", { class: "type" }, ...typeOf(one.schema), " · ", one.in),
        prose(one.description || "")))))));
    if (operation.requestBody)
      parts.push(fold("Body", true, make("p", { class: "type" }, ...typeOf(operation.requestBody.content["application/json"].schema))));
    parts.push(fold("Answers", false, make("table", {}, make("tbody", {}, ...Object.entries(operation.responses).map(([code, answer]) => row(
      make("span", { class: "code " + (code < 400 ? "good" : "bad") }, code),
      prose(answer.description),
      make("span", { class: "type" }, ...Object.values(answer.content || {}).slice(0, 1).flatMap((one) => typeOf(one.schema)))))))));
    parts.push(fold("Try it", false, shell(curl(verb, path, operation))));
    return make("article", { id: operation.operationId }, ...parts);
  };

  const schemaCard = (name, schema) => make("article", { class: "schema", id: "schema-" + name },
    make("h3", {}, name), make("p", { class: "say" }, make("small", {}, ...prose(schema.description || ""))),
    schema.properties
      ? fold("Fields", true, make("table", {}, make("tbody", {}, ...Object.entries(schema.properties).map(([field, one]) => row(
        [make("code", {}, field), (schema.required || []).includes(field) ? make("span", { class: "must" }, "required") : ""],
        make("span", { class: "type" }, ...typeOf(one)),
        "default" in one && one.default !== null ? ["default ", make("code", {}, JSON.stringify(one.default))] : "")))))
      : fold("Values", true, make("p", { class: "type" }, ...typeOf(schema))));

  $("version").textContent = spec.info.version;
  const groups = new Map();
  for (const [path, verbs] of Object.entries(spec.paths))
    for (const [verb, operation] of Object.entries(verbs))
      groups.set(operation.tags[0], [...(groups.get(operation.tags[0]) || []), { verb, path, operation }]);

  const found = []; // what the filter shows and hides
  const page = [make("h1", {}, spec.info.title + " API"), make("div", { class: "about" },
    ...spec.info.description.split("\n\n").map((text) => make("p", {}, ...prose(text))))];
  const nav = [];
  for (const [tag, operations] of groups) {
    const title = make("h2", {}, tag), heading = make("h2", {}, tag), members = [];
    page.push(title);
    nav.push(heading);
    for (const { verb, path, operation } of operations) {
      const node = card(verb, path, operation);
      const link = make("a", { href: "#" + operation.operationId, title: operation.summary },
        make("span", { class: "verb " + verb }, verb.toUpperCase()), make("span", { class: "path" }, path));
      page.push(node);
      nav.push(link);
      members.push({ text: (verb + " " + path + " " + operation.summary).toLowerCase(), nodes: [node, link] });
    }
    found.push({ heads: [title, heading], members });
  }
  const schemas = Object.entries(spec.components.schemas).map(([name, schema]) => ({ name, node: schemaCard(name, schema) }));
  const schemaTitle = make("h2", {}, "schemas");
  found.push({ heads: [schemaTitle], members: schemas.map(({ name, node }) => ({ text: name.toLowerCase(), nodes: [node] })) });
  main.replaceChildren(...page, schemaTitle, ...schemas.map(({ node }) => node));
  $("nav").replaceChildren(...nav);

  const filter = $("filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { heads, members } of found) {
      let any = false;
      for (const { text, nodes } of members) {
        const shown = words.every((word) => text.includes(word));
        any ||= shown;
        for (const node of nodes) node.hidden = !shown;
      }
      for (const head of heads) head.hidden = !any;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== filter) { event.preventDefault(); filter.focus(); }
    if (event.key === "Escape" && document.activeElement === filter) { filter.value = ""; filter.dispatchEvent(new Event("input")); }
  });
  if (location.hash) document.querySelector(CSS.escape ? "#" + CSS.escape(location.hash.slice(1)) : location.hash)?.scrollIntoView();
})();
