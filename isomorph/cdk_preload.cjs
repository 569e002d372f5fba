// For its log the CDK CLI turns each call that it made into JSON, with a number for every byte of
// what it uploaded: half of its time where the wheels of torch are among that.
Buffer.prototype.toJSON = function () {
  return `<${this.length} bytes>`;
};
