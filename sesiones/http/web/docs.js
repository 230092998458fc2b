"use strict";
// Shows openapi.json, which is beside this page, and tries its operations. The credentials live in
// their two inputs and in the headers of a request, nowhere else.

const METHODS = ["get", "head", "post", "put", "patch", "delete", "options", "trace"];
const UNSENDABLE = ["trace"]; // fetch() refuses it
const JSON_TYPE = "application/json";
const byId = (id) => document.getElementById(id);
const bodies = new Map(); // operationId -> the textarea of its request body
let spec;

/** An element; attributes that are functions are listeners, and what is false or undefined is
 *  left out. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== false));
  return made;
}

function resolve(value) {
  while (value && value.$ref) {
    value = value.$ref.slice(2).split("/").reduce((found, name) => found[name], spec);
  }
  return value;
}

/** The little Markdown that the descriptions use: paragraphs, `code` and **strong**. */
function prose(text = "") {
  return text.split("\n\n").map((paragraph) => element("p", {}, inline(paragraph)));
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith("`")) return element("code", {}, part.slice(1, -1));
    if (part.startsWith("**")) return element("strong", {}, part.slice(2, -2));
    return part;
  });
}

function pretty(value) {
  return JSON.stringify(value, null, 2);
}

// What a schema says, in words.

function typeOf(schema) {
  const names = { integer: "entero", string: "cadena", array: "lista", object: "objeto" };
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" o ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const name = names[schema.type] ?? schema.type;
  if (schema.maximum === Number.MAX_SAFE_INTEGER) return `${name}, de ${schema.minimum} a 2⁵³ − 1`;
  if (schema.maximum) return `${name}, de ${schema.minimum} a ${schema.maximum}`;
  if (schema.maxLength) return `${name}, de ${schema.minLength} a ${schema.maxLength} caracteres`;
  if (schema.pattern) return element("span", {}, `${name}, `, element("code", {}, schema.pattern));
  return name;
}

function fieldList(fields) {
  return element("dl", { class: "list" }, fields.map(([name, required, schema, description]) => [
    element("dt", {}, element("code", {}, name), !required && element("small", {}, "opcional")),
    element("dd", {}, element("span", { class: "type" }, typeOf(schema)), " ", inline(description ?? "")),
  ]));
}

function bodyFields(schema) {
  const required = schema.required ?? [];
  return Object.entries(schema.properties).map(([name, reference]) => {
    const field = resolve(reference);
    return [name, required.includes(name), field, field.description];
  });
}

// An operation: the methods of a path that do the same are one card.

function operations() {
  const found = [];
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const method of METHODS.filter((name) => name in item)) {
      const operation = item[method];
      const alike = found.find((one) => one.path === path && one.operation.summary === operation.summary);
      if (alike) alike.methods.push(method);
      else found.push({ path, item, operation, methods: [method] });
    }
  }
  return found;
}

function badges(methods) {
  const shown = methods.length > 3 ? ["any"] : methods;
  return shown.map((name) => element("span", { class: `method ${name}` }, name === "any" ? "cualquiera" : name.toUpperCase()));
}

/** The one media type that the document has for the body of an operation. */
function bodyType(operation) {
  return Object.keys(operation.requestBody?.content ?? {})[0];
}

/** An example of a body, as it is sent. */
function written(example, type) {
  return type === JSON_TYPE ? pretty(example) : new URLSearchParams(example).toString();
}

function card(one) {
  const { path, item, operation, methods } = one;
  const parameters = item.parameters ?? [];
  const content = operation.requestBody?.content ?? {};
  const type = bodyType(operation);
  return element("article", { id: operation.operationId, "aria-labelledby": `${operation.operationId}-titulo` },
    element("h3", { id: `${operation.operationId}-titulo` }, operation.summary),
    element("p", { class: "route" }, badges(methods), element("code", {}, breakable(path))),
    prose(operation.description ?? item.description),
    element("p", { class: "security" }, element("strong", {}, "Credencial: "), credentialText(operation)),
    parameters.length > 0 && section("Ruta", fieldList(parameters.map((one) => [one.name, one.required, one.schema, one.description]))),
    type && section("Cuerpo",
      element("p", {}, inline(operation.requestBody.description)),
      element("p", { class: "types" }, element("code", {}, type)),
      fieldList(bodyFields(resolve(content[type].schema)))),
    trial(one),
    section("Respuestas", Object.entries(operation.responses).map(responseDetails)),
  );
}

/** Lets a long path break after its slashes. */
function breakable(path) {
  return path.split("/").flatMap((part, index) => index ? ["/", element("wbr"), part] : [part]);
}

function section(title, ...children) {
  return element("section", {}, element("h4", {}, title), ...children);
}

function credentialText(operation) {
  const schemes = operation.security.flatMap(Object.keys);
  if (schemes.includes("clave")) return ["clave de servicio, en ", element("code", {}, "Authorization: Bearer")];
  if (!schemes.includes("token")) return ["ninguna"];
  return ["token de la sesión, en ", element("code", {}, "x-auth-token"), " o en ", element("code", {}, "Authorization: Bearer")];
}

function responseDetails([status, reference]) {
  const response = resolve(reference);
  const headers = Object.entries(response.headers).map(([name, header]) => {
    const { required, schema, description } = resolve(header);
    return [name, required, schema, description];
  });
  const [type, media] = Object.entries(response.content ?? {})[0] ?? [];
  const examples = Object.values(media?.examples ?? {});
  return element("details", { class: "response" },
    element("summary", {}, element("span", { class: `status s${status[0]}` }, status), " ", element("span", {}, inline(response.description))),
    element("div", {},
      fieldList(headers),
      type && element("p", { class: "types" }, element("code", {}, type)),
      examples.map((example) => [
        examples.length > 1 && element("p", { class: "caption" }, example.summary),
        element("pre", { tabindex: 0 }, pretty(example.value)),
      ])),
  );
}

// Trying an operation.

function trial({ path, item, operation, methods }) {
  const id = operation.operationId;
  const inputs = (item.parameters ?? []).map((parameter) => ({
    name: parameter.name,
    input: element("input", { id: `${id}-${parameter.name}`, value: parameter.example ?? "", autocomplete: "off" }),
  }));
  const sendable = methods.filter((name) => !UNSENDABLE.includes(name));
  const method = element("select", { id: `${id}-metodo` }, sendable.map((name) => element("option", { value: name }, name.toUpperCase())));
  const type = bodyType(operation);
  const example = operation.requestBody?.content[type].examples.portatil.value;
  const body = example && element("textarea", { id: `${id}-cuerpo`, rows: Object.keys(example).length + 3, spellcheck: "false", autocapitalize: "off" });
  if (body) {
    body.value = written(example, type);
    bodies.set(id, body);
  }
  const answer = element("div", { class: "answer", role: "status" });
  const button = element("button", { type: "button", class: "send", click: send }, "Enviar");

  async function send() {
    button.disabled = true;
    answer.replaceChildren(element("p", {}, "Enviando…"));
    const route = inputs.reduce((done, { name, input }) => done.replace(`{${name}}`, encodeURIComponent(input.value)), path);
    const request = { method: method.value.toUpperCase(), headers: credential(operation), cache: "no-store", credentials: "omit", redirect: "error" };
    if (body) {
      request.headers["content-type"] = type;
      request.body = body.value;
    }
    try {
      const started = performance.now();
      const response = await fetch(`.${route}`, request);
      const text = await response.text();
      answer.replaceChildren(...shownAnswer(response, text, performance.now() - started));
      follow(operation, response, text);
    } catch (error) {
      answer.replaceChildren(element("p", { class: "failure" }, `No hubo respuesta: ${error.message}`));
    }
    button.disabled = false;
  }

  return element("section", { class: "trial", "aria-label": `Probar: ${operation.summary}` },
    element("h4", {}, "Probar"),
    element("div", { class: "fields" },
      sendable.length > 1 && field("Método", method),
      inputs.map(({ name, input }) => field(name, input)),
      body && field(type === JSON_TYPE ? "Cuerpo (JSON)" : "Cuerpo (formulario)", body),
      button),
    answer,
    element("details", { class: "response" },
      element("summary", {}, "Con curl"),
      element("div", {}, element("pre", { tabindex: 0 }, curl(path, sendable[0], operation, inputs, example, type)))));
}

/** The command, with the credential in a variable of the shell. */
function curl(path, method, operation, inputs, example, type) {
  const route = inputs.reduce((done, { name, input }) => done.replace(`{${name}}`, input.value), path);
  const flags = { get: "", head: " -I" }[method] ?? ` -X ${method.toUpperCase()}`;
  const lines = [`curl -i${flags} ${new URL(`.${route}`, location)}`];
  const schemes = operation.security.flatMap(Object.keys);
  if (schemes.includes("token")) lines.push('-H "x-auth-token: $TOKEN"');
  if (schemes.includes("clave")) lines.push('-H "Authorization: Bearer $CLAVE"');
  if (type === JSON_TYPE) lines.push(`-H 'Content-Type: ${type}'`, `-d '${JSON.stringify(example)}'`);
  else if (type) lines.push(`-d '${written(example, type)}'`);
  return lines.join(" \\\n  ");
}

function field(text, control) {
  return element("div", { class: control.tagName === "TEXTAREA" ? "wide" : "" }, element("label", { for: control.id }, text), control);
}

function credential(operation) {
  const schemes = operation.security.flatMap(Object.keys);
  const token = byId("token").value.trim();
  const key = byId("clave").value.trim();
  if (schemes.includes("token") && token) return { "x-auth-token": token };
  if (schemes.includes("clave") && key) return { authorization: `Bearer ${key}` };
  return {};
}

function shownAnswer(response, text, milliseconds) {
  const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  let shown = text;
  if (/json/.test(response.headers.get("content-type") ?? "") && text) shown = pretty(JSON.parse(text));
  if (shown.length > 20000) shown = `${shown.slice(0, 20000)}\n…`;
  return [
    element("p", {},
      element("span", { class: `status s${String(response.status)[0]}` }, String(response.status)),
      ` ${response.statusText} `, element("small", {}, `${milliseconds.toFixed(0)} ms`)),
    element("pre", { tabindex: 0 }, headers),
    shown ? element("pre", { tabindex: 0 }, shown) : element("p", {}, "Sin cuerpo."),
  ];
}

/** What the reply is good for: its token, and the bodies that the response's links name. */
function follow(operation, response, text) {
  const links = resolve(operation.responses[response.status])?.links;
  if (!links || !text) return; // a HEAD has no body
  const reply = JSON.parse(text);
  byId("token").value = reply.Token_Sesion;
  for (const { operationId, requestBody } of Object.values(links)) {
    bodies.get(operationId).value = pretty(evaluate(requestBody, reply));
  }
}

/** Runtime expressions, of those in OpenAPI 3.1, 4.8.20.3, the two that the document uses. */
function evaluate(expression, reply) {
  if (typeof expression === "object") {
    return Object.fromEntries(Object.entries(expression).map(([name, value]) => [name, evaluate(value, reply)]));
  }
  const pointer = expression.split("#/")[1];
  return pointer === undefined ? reply : reply[pointer];
}

// The devices: the sessions of the token's user, and an end for each.

/** The members of the answer. Throws an Error with the detail of a problem. */
async function ask(method, route) {
  const headers = { "x-auth-token": byId("token").value.trim() };
  const response = await fetch(`.${route}`, { method, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  const reply = await response.json();
  if (!response.ok) throw new Error(reply.detail);
  return reply;
}

/** Shows the list anew once the work, if any, is done. */
async function showDevices(work) {
  const list = byId("lista-dispositivos");
  for (const button of list.querySelectorAll("button")) button.disabled = true;
  try {
    await work?.();
    const { Sesiones } = await ask("GET", "/sesiones");
    list.replaceChildren(element("ul", { class: "devices" }, Sesiones.map(device)));
  } catch (error) {
    list.replaceChildren(element("p", { class: "failure" }, error.message));
  }
}

function device(sesion) {
  const moment = (seconds) => new Date(seconds * 1000).toLocaleString("es");
  const end = () => showDevices(() => ask("DELETE", `/sesiones/${sesion.ID_Sesion}`));
  const name = `${sesion.Dispositivo}, sesión ${sesion.ID_Sesion}`;
  return element("li", { "data-sesion": sesion.ID_Sesion },
    element("div", {},
      element("strong", {}, sesion.Dispositivo),
      element("small", {},
        sesion.Actual && " Es esta sesión.", !sesion.Estado_Sesion && " Inactiva.",
        ` Último uso: ${moment(sesion.Ultima_Actividad)}. Desde: ${moment(sesion.Fecha_Inicio)}.`)),
    element("button", { type: "button", "aria-label": `Cerrar ${name}`, click: end }, "Cerrar"));
}

byId("ver-dispositivos").addEventListener("click", () => showDevices());

// The page.

function show() {
  byId("version").textContent = spec.info.version;
  byId("descripcion").append(...prose(spec.info.description));
  const found = operations();
  for (const tag of spec.tags) {
    const tagged = found.filter((one) => one.operation.tags.includes(tag.name));
    const title = tag["x-displayName"];
    byId("operaciones").append(
      element("section", { class: "tag", "aria-label": title }, element("h2", {}, title), prose(tag.description), tagged.map(card)));
    byId("indice").append(
      element("p", {}, title),
      element("ul", {}, tagged.map(({ path, operation, methods }) => element("li", {},
        element("a", { href: `#${operation.operationId}` }, badges(methods), element("span", {}, breakable(path.replace("/sesiones/", "…/"))))))));
  }
  byId("estado").remove();
  if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
}

byId("mostrar").addEventListener("click", ({ target }) => {
  const shown = target.getAttribute("aria-pressed") !== "true";
  target.setAttribute("aria-pressed", shown);
  target.textContent = shown ? "Ocultar" : "Mostrar";
  for (const id of ["token", "clave"]) byId(id).type = shown ? "text" : "password";
});

// On a phone the menu is closed, and closes again once it has been of use.
const narrow = matchMedia("(max-width: 60rem)");
const fold = () => { byId("menu").open = !narrow.matches; };
narrow.addEventListener("change", fold);
byId("indice").addEventListener("click", ({ target }) => { if (target.closest("a")) fold(); });
fold();

fetch("openapi.json", { cache: "no-store", credentials: "omit" })
  .then((response) => response.json())
  .then((document) => { spec = document; show(); })
  .catch((error) => { byId("estado").textContent = `No se pudo leer openapi.json: ${error.message}`; });
