"use strict";

const list = document.getElementById("devices");
const state = document.getElementById("live");

async function ask(method, path) {
  const response = await fetch(path, { method });
  if (response.status === 401) location.assign("/auth/login");
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status}`);
  return response.json();
}

async function show() {
  const devices = await ask("GET", "/devices");
  list.replaceChildren(
    ...devices.map((device) => {
      const row = document.createElement("li");
      row.dataset.sesion = device.ID_Sesion;
      // As text: a client chooses the name of its device.
      row.append(device.Dispositivo, device.Actual ? " (this one) " : " ");
      const button = document.createElement("button");
      button.textContent = "Log out";
      button.onclick = () => ask("DELETE", `/devices/${device.ID_Sesion}`).then(show);
      row.append(button);
      return row;
    }),
  );
}

const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/live`);
socket.onmessage = ({ data }) => (state.textContent = `user ${JSON.parse(data).user}`);
socket.onclose = ({ code, reason }) => (state.textContent = `closed: ${code} ${reason}`);
document.getElementById("others").onclick = () => ask("POST", "/auth/end-others").then(show);
show();
