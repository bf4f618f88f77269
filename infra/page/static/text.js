// Numbers and times as people read them. Times are UTC: so are the windows' names.

export const number = (value, digits = 0) =>
  value === null || value === undefined ? "" : value.toLocaleString("en", { maximumFractionDigits: digits });

export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

export const score = (value) => (value === null || value === undefined ? "" : Number(value.toPrecision(4)).toString());

export const percent = (share) => `${(share * 100).toLocaleString("en", { maximumFractionDigits: 1 })} %`;

export const bytes = (size) => (size === null ? "" : size < 1024 ? `${size} B` : `${number(size / 1024, 1)} KiB`);

export function time(ms, { seconds = false } = {}) {
  if (ms === null || ms === undefined || Math.abs(ms) > 8.64e15) return ms === null || ms === undefined ? "" : `${ms} ms`;
  return new Date(ms).toISOString().slice(0, seconds ? 19 : 16).replace("T", " ");
}

export const span = (item) => `${time(item.start_ms)} – ${time(item.end_ms)}${item.key ? ` of ${item.key}` : ""}`;

export function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  return s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}
