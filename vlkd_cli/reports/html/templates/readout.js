"use strict";
// Shows the values under the pointer; without it the page loses nothing else.
document.querySelectorAll("svg[data-readout]").forEach(function (svg) {
  var data = JSON.parse(svg.dataset.readout), axis = data.x;
  var cursor = svg.querySelector(".cursor"), box = document.createElement("div");
  var width = svg.viewBox.baseVal.width, height = svg.viewBox.baseVal.height;
  box.className = "readout";
  box.hidden = true;
  svg.parentNode.appendChild(box);
  function toPixel(x) {
    var span = axis[2] - axis[1];
    return span ? axis[3] + (x - axis[1]) / span * (axis[4] - axis[3]) : (axis[3] + axis[4]) / 2;
  }
  function nearest(xs, pixel) {
    var found = 0;
    xs.forEach(function (x, n) {
      if (Math.abs(toPixel(x) - pixel) < Math.abs(toPixel(xs[found]) - pixel)) found = n;
    });
    return found;
  }
  svg.addEventListener("pointermove", function (event) {
    var frame = svg.getBoundingClientRect();
    var pixel = (event.clientX - frame.left) / frame.width * width;
    var step = null, lines = data.s.map(function (series) {
      var n = nearest(series[1], pixel), x = series[1][n];
      if (step === null) step = x;
      return series[0] + "  " + series[2][n] + (x === step ? "" : " (" + axis[0] + " " + x + ")");
    });
    var at = toPixel(step) / width * frame.width;
    cursor.setAttribute("d", "M" + toPixel(step) + " 16V" + (height - 26));
    box.textContent = [axis[0] + " " + step].concat(lines).join("\n");
    box.hidden = false;
    box.style.top = svg.offsetTop + "px";
    box.style.left = Math.max(0, Math.min(
      svg.offsetLeft + at + (at > frame.width / 2 ? -box.offsetWidth - 10 : 10),
      svg.parentNode.clientWidth - box.offsetWidth)) + "px";
  });
  svg.addEventListener("pointerleave", function () {
    box.hidden = true;
    cursor.setAttribute("d", "");
  });
});
