// What cannot be seen or read on a page, as texts; an empty list if all can.
(() => {
  const LEAST_CONTRAST = 4.5; // WCAG 2.2, AA.
  const SLACK = 1.5; // Pixels: places are rounded.
  const WORDS = "h1, h2, h3, p, li, dt, dd, th, td, caption, figcaption, summary, pre";

  document.querySelectorAll("details").forEach((part) => (part.open = true));
  const all = [...document.body.querySelectorAll("*")];

  const name = (element) => {
    const kind = element.getAttribute("class");
    const text = element.textContent.trim().slice(0, 40);
    return `${element.localName}${kind ? "." + kind : ""} "${text}"`;
  };
  const ancestors = function* (element) {
    for (; element; element = element.parentElement) yield element;
  };
  const isUnder = (element, holds) =>
    [...ancestors(element.parentElement)].some((each) => holds(getComputedStyle(each)));
  const isShown = (element) =>
    element.getClientRects().length > 0 &&
    !isUnder(element, (style) => style.clipPath !== "none");
  const shown = all.filter(isShown);

  const tooWide = () => {
    const wide = shown.filter((element) => {
      const box = element.getBoundingClientRect();
      const outside = box.right > innerWidth + SLACK || box.left < -SLACK;
      return outside && !isUnder(element, (style) => style.overflowX !== "visible");
    });
    return document.documentElement.scrollWidth > innerWidth
      ? ["the page", ...wide.map(name)]
      : wide.map(name);
  };

  const isCut = (element) => {
    if (element.title) return false; // It says all when it is pointed at.
    const style = getComputedStyle(element);
    if (style.overflowX === "auto" || style.display === "inline") return false;
    const hides = style.overflowY === "hidden" || style.overflowY === "clip";
    return (
      element.scrollWidth > element.clientWidth + SLACK ||
      (hides && element.scrollHeight > element.clientHeight + SLACK)
    );
  };

  const leavesItsChart = (text) => {
    const [box, chart] = [text, text.ownerSVGElement].map((e) => e.getBoundingClientRect());
    return (
      Math.min(box.left - chart.left, box.top - chart.top) < -SLACK ||
      Math.max(box.right - chart.right, box.bottom - chart.bottom) > SLACK
    );
  };

  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (color) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const linear = pixel(color)
      .map((value) => value / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const background = (element) => {
    for (const each of ancestors(element)) {
      const color = getComputedStyle(each).backgroundColor;
      if (pixel(color)[3] > 0) return color;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? "#121212" : "#fff";
  };
  const contrast = (element) => {
    const style = getComputedStyle(element);
    const ink = element.ownerSVGElement ? style.fill : style.color;
    const [low, high] = [ink, background(element)].map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const hasWords = (element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());

  const list = (what, elements) => elements.map((element) => `${what}: ${name(element)}`);
  return [
    ...tooWide().map((element) => `wider than the window: ${element}`),
    ...list("cut off", shown.filter((element) => element.matches(WORDS)).filter(isCut)),
    ...list("out of its chart", shown.filter((e) => e.matches("svg text")).filter(leavesItsChart)),
    ...[...document.images]
      .filter((image) => !(image.complete && image.naturalWidth > 0))
      .map((image) => `not loaded: ${image.alt}`),
    ...list(
      "hard to read",
      shown.filter(hasWords).filter((element) => contrast(element) < LEAST_CONTRAST),
    ),
  ];
})();
