// Numbers as an operator reads them.

export const NOTHING = "–";

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return NOTHING;
  if (value === 0) return "0";
  if (Math.abs(value) >= 10 ** digits) return Math.round(value).toLocaleString("en");
  return Number(value.toPrecision(digits)).toString();
}

export function bytes(value) {
  if (value === null || value === undefined) return NOTHING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let rest = value;
  let place = 0;
  while (rest >= 1000 && place < units.length - 1) {
    rest /= 1000;
    place += 1;
  }
  return `${place ? number(rest) : rest} ${units[place]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return NOTHING;
  if (value < 0.9995) return `${number(value * 1000)} ms`;
  if (value < 120) return `${number(value)} s`;
  return duration(value);
}

export function duration(value) {
  const whole = Math.round(value);
  const parts = [
    [Math.floor(whole / 86400), "d"], [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"], [whole % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count);
  if (first < 0) return "0 s";
  return parts.slice(first, first + 2).filter(([count]) => count)
    .map(([count, unit]) => `${count} ${unit}`).join(" ");
}

// A divergence in nats: three digits, never in powers of ten.
export function nats(value) {
  if (value === null || value === undefined) return NOTHING;
  if (value === 0) return "0";
  if (value < 1e-5) return "< 0.00001";
  return Number(value.toPrecision(2)).toFixed(value < 0.001 ? 6 : value < 0.1 ? 4 : 2).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

export const percent = (share) => `${number(share * 100)} %`;

export const clock = (time) =>
  new Date(time * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const many = (count, one, more = `${one}s`) => `${number(count)} ${count === 1 ? one : more}`;
