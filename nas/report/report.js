// Hover, keyboard focus and zoom for charts that are complete without this script.
'use strict';
const tip = document.createElement('div');
tip.className = 'tip';
tip.setAttribute('role', 'status');
document.body.append(tip);

const clamp = (v, low, high) => Math.min(high, Math.max(low, v));

function label(scaled, log) {
  const value = log ? 10 ** scaled : scaled;
  for (const [scale, suffix] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
    if (Math.abs(value) >= scale * 0.9995) return +(value / scale).toPrecision(3) + suffix;
  }
  return String(+value.toPrecision(3));
}

function ticks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(k => k * power).find(s => s >= raw);
  const out = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) out.push(k * step);
  return out;
}

function enliven(svg) {
  const plot = svg.querySelector('.plot'), axes = svg.querySelector('.axes'), marks = [...plot.querySelectorAll('.mark')];
  const w = +plot.getAttribute('width'), h = +plot.getAttribute('height'), left = +plot.getAttribute('x'), top = +plot.getAttribute('y');
  const whole = ['x', 'y'].map(n => svg.dataset[n].split(' ').map(Number)), drawn = axes.innerHTML;
  let x = whole[0].slice(0, 2), y = whole[1].slice(0, 2), at = -1;
  const px = v => w * (v - x[0]) / (x[1] - x[0]), py = v => h * (1 - (v - y[0]) / (y[1] - y[0]));

  function draw() {
    for (const m of marks) m.setAttribute('transform', `translate(${px(+m.dataset.x)},${py(+m.dataset.y)})`);
    for (const l of plot.querySelectorAll('[data-points]')) {
      l.setAttribute('points', l.dataset.points.split(' ').map(p => p.split(',').map(Number)).map(([a, b]) => `${px(a)},${py(b)}`).join(' '));
    }
    const asDrawn = x[0] === whole[0][0] && x[1] === whole[0][1] && y[0] === whole[1][0] && y[1] === whole[1][1];
    axes.innerHTML = asDrawn ? drawn :
      ticks(...x).map(t => `<path d="M${left + px(t)} ${top}v${h}"/><text x="${left + px(t)}" y="${top + h + 16}" text-anchor="middle">${label(t, whole[0][2])}</text>`).join('') +
      ticks(...y).map(t => `<path d="M${left} ${top + py(t)}h${w}"/><text x="${left - 5}" y="${top + py(t) + 4}" text-anchor="end">${label(t, whole[1][2])}</text>`).join('');
  }

  function zoom(factor, cx, cy) {
    const [ax, ay] = [x[0] + cx * (x[1] - x[0]), y[0] + cy * (y[1] - y[0])];
    const next = (range, about, full) => {
      const wide = Math.min((range[1] - range[0]) * factor, full[1] - full[0]);
      const share = (about - range[0]) / (range[1] - range[0]);
      const low = clamp(about - share * wide, full[0], full[1] - wide);
      return [low, low + wide];
    };
    x = next(x, ax, whole[0]); y = next(y, ay, whole[1]);
    if (x[1] - x[0] > 0.999 * (whole[0][1] - whole[0][0])) x = whole[0].slice(0, 2);
    if (y[1] - y[0] > 0.999 * (whole[1][1] - whole[1][0])) y = whole[1].slice(0, 2);
    draw();
  }

  function move(dx, dy) {
    const by = (range, full, d) => {
      const shift = clamp(d * (range[1] - range[0]), full[0] - range[0], full[1] - range[1]);
      return [range[0] + shift, range[1] + shift];
    };
    x = by(x, whole[0], dx); y = by(y, whole[1], dy);
    draw();
  }

  function show(mark) {
    for (const m of plot.querySelectorAll('.near')) m.classList.remove('near');
    if (!mark) { tip.classList.remove('on'); return; }
    mark.classList.add('near');
    tip.textContent = mark.dataset.tip;
    tip.classList.add('on');
    const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = clamp(box.left + box.width / 2 - own.width / 2, 4, Math.max(4, document.documentElement.clientWidth - own.width - 4)) + scrollX + 'px';
    tip.style.top = (box.top > own.height + 12 ? box.top - own.height - 8 : box.bottom + 8) + scrollY + 'px';
  }

  const where = event => {
    const box = plot.querySelector('.back').getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
  };
  const nearest = event => {
    const [cx, cy] = where(event);
    let best = null, least = 18 * 18;
    for (const m of marks) {
      const d = (px(+m.dataset.x) - cx * w) ** 2 + (py(+m.dataset.y) - (1 - cy) * h) ** 2;
      if (d <= least) { least = d; best = m; }
    }
    return best;
  };
  let from = null;
  svg.addEventListener('pointerdown', event => { from = [event.clientX, event.clientY]; show(nearest(event)); });
  svg.addEventListener('pointerup', () => { from = null; });
  svg.addEventListener('pointerleave', () => { from = null; show(null); });
  svg.addEventListener('pointermove', event => {
    if (from && event.pointerType === 'mouse') {
      const box = plot.querySelector('.back').getBoundingClientRect();
      move((from[0] - event.clientX) / box.width, (event.clientY - from[1]) / box.height);
      from = [event.clientX, event.clientY];
    } else show(nearest(event));
  });
  svg.addEventListener('wheel', event => {
    if (!event.ctrlKey && document.activeElement !== svg) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, ...where(event));
  }, {passive: false});
  svg.addEventListener('dblclick', event => zoom(0.5, ...where(event)));
  svg.setAttribute('tabindex', '0');
  const order = marks.slice().sort((a, b) => a.dataset.x - b.dataset.x || b.dataset.y - a.dataset.y);
  const reset = () => { x = whole[0].slice(0, 2); y = whole[1].slice(0, 2); draw(); };
  svg.addEventListener('keydown', event => {
    if (event.key === 'ArrowRight' || event.key === 'ArrowLeft') {
      at = clamp(at + (event.key === 'ArrowRight' ? 1 : -1), 0, order.length - 1);
      show(order[at]);
    } else if (event.key === '+' || event.key === '=') zoom(0.7, 0.5, 0.5);
    else if (event.key === '-') zoom(1 / 0.7, 0.5, 0.5);
    else if (event.key === '0') reset();
    else if (event.key === 'Escape') show(null);
    else return;
    event.preventDefault();
  });
  svg.addEventListener('blur', () => show(null));
  const bar = document.createElement('div');
  bar.className = 'tools';
  for (const [text, name, act] of [['+', 'zoom in', () => zoom(0.7, 0.5, 0.5)], ['−', 'zoom out', () => zoom(1 / 0.7, 0.5, 0.5)], ['reset', 'show all', reset]]) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = text;
    button.setAttribute('aria-label', name + ': ' + svg.getAttribute('aria-label').split('.')[0]);
    button.addEventListener('click', act);
    bar.append(button);
  }
  svg.after(bar);
}

for (const svg of document.querySelectorAll('svg.chart')) enliven(svg);
document.documentElement.classList.add('live');
