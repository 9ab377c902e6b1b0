// A straight line through samples [hours, MiB]: least squares → {slope, noise (σ of what is left), error (σ of the slope)}.
export function line(samples) {
  const n = samples.length;
  const mx = samples.reduce((sum, [x]) => sum + x, 0) / n, my = samples.reduce((sum, [, y]) => sum + y, 0) / n;
  let xx = 0, xy = 0;
  for (const [x, y] of samples) {
    xx += (x - mx) ** 2;
    xy += (x - mx) * (y - my);
  }
  const slope = xx ? xy / xx : 0;
  const left = samples.reduce((sum, [x, y]) => sum + (y - my - slope * (x - mx)) ** 2, 0);
  const noise = Math.sqrt(left / Math.max(1, n - 2));
  return { slope, noise, error: xx ? noise / Math.sqrt(xx) : Infinity, hours: n ? samples[n - 1][0] - samples[0][0] : 0 };
}

// Memory grows: more than the promise allows, and more than its own noise and a page cache explain.
export function isGrowing({ slope, noise, hours }) {
  return slope > 1 && slope * hours > Math.max(2, 2 * noise);
}
